"""The part of a batch that is not padding."""

import torch
from torch import Tensor

from normscope.ops.moments import Moments, two_sum
from normscope.ops.sets.batch import StatisticsSet
from normscope.ops.shapes import ShapeError
from normscope.ops.statistics import channel_axes, channelwise, wide


class Masked(StatisticsSet):
    """The values of a channel where a mask is true.

    What is masked out never counts: not in a statistic, not in a gradient, and not if it is NaN.

    Args:
        mask: True for values that count: ``(N, *)`` for all channels alike, or ``(N, 1, *)``, or ``(N, C, *)``.
        x: The values that it is a mask of, ``(N, C, *)``.

    Raises:
        ShapeError: The mask is not boolean, or does not fit the values.
    """

    def __init__(self, mask: Tensor, x: Tensor) -> None:
        if mask.dtype != torch.bool:
            raise ShapeError(f"the mask should be boolean, true for values that count, got {mask.dtype}")
        one_axis_less = mask.ndim == x.ndim - 1
        fitted = mask.unsqueeze(1) if one_axis_less else mask
        wanted = (x.shape[0], fitted.shape[1] if fitted.ndim > 1 else 0, *x.shape[2:])
        if fitted.ndim != x.ndim or fitted.shape != wanted or fitted.shape[1] not in (1, x.shape[1]):
            raise ShapeError(
                f"the mask of values {tuple(x.shape)} should have the same shape, with the second axis 1 or left out "
                f"if it is the same for all channels; got {tuple(mask.shape)}"
            )
        self.mask = fitted

    def keep(self, t: Tensor) -> Tensor:
        """Return ``t`` with zeros where the mask is false."""
        # The other operand is a constant of t's type: where() passes no gradient to what it does not take.
        return torch.where(self.mask, t, t.new_zeros(()))

    def count(self, x: Tensor) -> Tensor:
        """Return how many values count in each channel: ``(C,)``, or ``(1,)`` for all channels alike."""
        return self.mask.sum(channel_axes(x)).to(wide(x.dtype))

    def moments(self, x: Tensor) -> Moments:
        """Return the moments of the values that count; mean and deviations are 0 where there are none."""
        count = self.count(x)
        at_least_one = count.clamp(min=1)
        x = self.keep(x).to(wide(x.dtype))
        shift = (x.sum(channel_axes(x)) / at_least_one).detach()
        d = self.keep(x - channelwise(shift, x))
        rest = d.sum(channel_axes(x)) / at_least_one
        mean, low = two_sum(shift, rest)
        m2 = self.keep(d - channelwise(rest, d)).square().sum(channel_axes(x))
        return Moments(count, mean, low, m2)

    def average(self, t: Tensor, count: int | Tensor) -> Tensor:
        """Average the values that count."""
        if isinstance(count, Tensor):
            count = count.clamp(min=1)
        return self.keep(t).sum(channel_axes(t)) / count


def mask_of_lengths(lengths: Tensor, x: Tensor) -> Tensor:
    """Return the mask of sequences that are padded at their ends.

    Args:
        lengths: How many positions of each sample count, along the last axis: whole numbers ``(N,)``.
        x: The values ``(N, C, *, L)``.

    Returns:
        A boolean mask ``(N, 1, *, L)``.

    Raises:
        ShapeError: There is no axis of positions, or not one length for each sample.
    """
    if x.ndim < 3:
        raise ShapeError(f"lengths are for values with positions (N, C, *, L), got shape {tuple(x.shape)}")
    if lengths.shape != x.shape[:1] or lengths.dtype.is_floating_point:
        raise ShapeError(
            f"expected one whole number as the length of each of {x.shape[0]} samples, got {lengths.dtype} "
            f"of shape {tuple(lengths.shape)}"
        )
    within = torch.arange(x.shape[-1], device=x.device) < lengths.to(x.device).unsqueeze(1)
    return within.view(x.shape[0], 1, *(1,) * (x.ndim - 3), x.shape[-1]).expand(x.shape[0], 1, *x.shape[2:])
