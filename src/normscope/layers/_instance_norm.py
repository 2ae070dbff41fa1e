"""What instance norms of one, two and three dimensions share: everything."""

from torch import Tensor
from torch.nn.modules.instancenorm import _InstanceNorm

from normscope.layers._norm import AbstractLayer
from normscope.ops import ShapeError, instance_norm
from normscope.ops.track import share_of_batch


class AbstractInstanceNorm(AbstractLayer, _InstanceNorm):
    """Torch's parameters, buffers and state dict; the numbers come from ``normscope.ops``."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each channel of each sample.

        Args:
            input: Values ``(N, C, *)``, or ``(C, *)`` for one sample.

        Returns:
            The normalized values in the type, shape and layout of ``input``.

        Raises:
            ShapeError: Not ``num_features`` channels; or, where samples have statistics of their own, one value a
                channel.
            ValueError: Not the number of axes that this layer takes.
        """
        self._check_input_dim(input)
        single = input.dim() == self._get_no_batch_dim()
        x = input.unsqueeze(0) if single else input
        # Torch only warns where there is no gain to give a channel too many or too few.
        if x.shape[1] != self.num_features:
            raise ShapeError(f"expected {self.num_features} channels, got {x.shape[1]} in shape {tuple(input.shape)}")
        own = self.training or not self.track_running_stats
        seen = self.num_batches_tracked if self.training and self.track_running_stats else None
        y = instance_norm(
            x,
            self.weight,
            self.bias,
            eps=self.eps,
            running_mean=self.running_mean if self.track_running_stats else None,
            running_var=self.running_var if self.track_running_stats else None,
            use_input_stats=own,
            momentum=share_of_batch(self.momentum, seen),
        )
        if seen is not None:
            seen.add_(1)
        return y.squeeze(0) if single else y
