"""What layers share: each has a page; and what batch norms of one, two and three dimensions share: everything."""

from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from normscope._unit import Unit
from normscope.ops import batch_norm
from normscope.ops.track import weight_of_batch


class AbstractLayer(Module, Unit):
    """A torch module with a page."""

    HEADINGS = ("Formula", "Statistics", "Invariances")


class AbstractBatchNorm(AbstractLayer, _BatchNorm):
    """Torch's parameters, buffers and state dict; the numbers come from ``normscope.ops``."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each channel.

        Args:
            input: Values ``(N, C, *)``.

        Returns:
            The normalized values in the type and shape of ``input``.

        Raises:
            ShapeError: In training, one value a channel; or not one channel for each feature.
            ValueError: Not the number of axes that this layer takes.
        """
        self._check_input_dim(input)
        tracks = self.track_running_stats and self.running_mean is not None
        updates = self.training and tracks
        seen = self.num_batches_tracked
        # Counted before the numbers move and stored after: a forward that raises leaves no trace.
        share = 0.0
        if updates:
            share = weight_of_batch(self.momentum, None if seen is None else seen + 1)
        y = batch_norm(
            input,
            self.weight,
            self.bias,
            eps=self.eps,
            # Buffers of a layer that no longer tracks are read outside training, and left alone in it.
            running_mean=self.running_mean if tracks or not self.training else None,
            running_var=self.running_var if tracks or not self.training else None,
            training=self.training or (self.running_mean is None and self.running_var is None),
            momentum=share,
        )
        if updates and seen is not None:
            seen.add_(1)
        return y
