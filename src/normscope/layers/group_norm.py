r"""Group normalization (Wu & He, 2018)."""

import torch
from torch import Tensor

from normscope.layers._layer import AbstractLayer
from normscope.ops import group_norm


class GroupNorm(AbstractLayer, torch.nn.GroupNorm):
    r"""Group normalization: each group of neighbouring channels of each sample by itself.

    ## Formula
    $y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$, a $\gamma$ and a $\beta$ per channel.

    ## Statistics
    Mean and biased variance over the $C/G$ channels of a group and all positions, in training and outside it: a
    sample's output does not depend on the others. One group is layer normalization over channels and positions with a
    gain per channel; as many groups as channels, instance normalization. float32 or wider whatever the input, and right
    where a mean is large beside its standard deviation.

    ## Invariances
    For each sample and group by itself, hence for a whole sample: adding a constant to a sample, and scaling a sample
    by a positive number while its variance is large beside ``eps``. Scaling or shifting one channel alone changes the
    output unless the channel is its own group. Permuting the positions of a sample permutes the output.

    A ``torch.nn.GroupNorm`` with the same arguments, state dict and numbers.

    Args:
        num_groups: Groups ``G``, a divisor of ``num_channels``.
        num_channels: Channels ``C`` of inputs ``(N, C, *)``.
        eps: Added to the variance, in squared units of the input.
        affine: Whether there are a gain (``weight``) and a shift (``bias``) to learn.
        device: Where parameters live.
        dtype: Their type.
    """

    CODE = "group_norm"
    SOURCES = ("arXiv:1803.08494 section 3",)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each group.

        Args:
            input: Values ``(N, C, *)``.

        Returns:
            The normalized values in the type, shape and layout of ``input``.

        Raises:
            ShapeError: Not ``num_channels`` channels.
        """
        if not isinstance(input, Tensor):
            return self.recorded(input)
        return group_norm(input, self.num_groups, self.weight, self.bias, self.eps)
