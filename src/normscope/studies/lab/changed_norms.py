"""Layer norms with one change: statistics that are constants of the backward pass, or an output scaled by the block."""

import math

from torch import Tensor, nn

from normscope.studies.lab.models import Norm, Place
from normscope.studies.lab.token_norms import layer


def cut(*, mean: bool = True, variance: bool = True) -> Norm:
    """Layer norm whose backward pass takes statistics for constants (Xu et al. 2019, "DetachNorm" if both).

    Args:
        mean: Whether the mean is taken for a constant.
        variance: Whether the variance is taken for a constant.
    """
    return lambda place: CutLayerNorm(place.features, mean=mean, variance=variance)


def scaled_by_depth(blocks: int) -> Norm:
    """Layer norm times one over the square root of the block's number from 1 (Sun et al. 2025, LayerNorm Scaling).

    The norm behind the last block is not scaled.

    Args:
        blocks: Number of blocks of the transformer.
    """

    def make(place: Place) -> nn.Module:
        norm, block = layer()(place), place.index // 2
        return norm if block == blocks else Scaled(norm, 1 / math.sqrt(block + 1))

    return make


class CutLayerNorm(nn.LayerNorm):
    """Layer norm over the last axis with the forward values of layer norm and chosen derivatives cut off.

    With both cut, the input gradient is ``weight / sigma * upstream``: the rescaling alone.
    """

    def __init__(self, features: int, *, mean: bool, variance: bool) -> None:
        super().__init__(features)
        self.cut_mean, self.cut_variance = mean, variance

    def forward(self, input: Tensor) -> Tensor:
        """Map (*, features) to the same shape."""
        mean = input.mean(-1, keepdim=True)
        # The derivative of the variance with respect to the mean is zero, so the two cuts do not touch each other.
        variance = (input - mean).square().mean(-1, keepdim=True)
        mean = mean.detach() if self.cut_mean else mean
        variance = variance.detach() if self.cut_variance else variance
        return (input - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


class Scaled(nn.Module):
    """What the module inside puts out, times a number."""

    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module inside and scale."""
        out: Tensor = self.inner(x) * self.factor
        return out
