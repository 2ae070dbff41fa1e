"""What layers share: each has a page; and what batch norms of one, two and three dimensions share: everything."""

from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

from normscope._unit import Unit
from normscope.ops import batch_norm
from normscope.ops.track import share_of_batch


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
        running_mean, running_var, seen = self.running_mean, self.running_var, self.num_batches_tracked
        training = self.training
        share = 0.0
        if training:
            if self.track_running_stats:
                share = share_of_batch(self.momentum, seen)
            else:  # buffers that were left behind when tracking was switched off stay as they are
                running_mean = running_var = seen = None
        y = batch_norm(
            input,
            self.weight,
            self.bias,
            eps=self.eps,
            running_mean=running_mean,
            running_var=running_var,
            training=training or (running_mean is None and running_var is None),
            momentum=share,
        )
        if training and seen is not None:  # only now: a forward that raises is not counted
            seen.add_(1)
        return y
