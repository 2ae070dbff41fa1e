r"""Mean and variance of a batch that do not drown in an offset.

In float32, 1e6 + randn summed as it is has a mean wrong by as much as its standard deviation is wide, and
:math:`x\,a + (\beta - \mu a)` loses what is left. So a constant close to the mean is taken off first,
:math:`d = x - c`: the difference of nearby floats is exact (Sterbenz), and all that follows is done on values as large
as their own deviations. Standardization does not see a shift, to any order of derivative, so :math:`c` is a constant
to autograd.
"""

import torch
from torch import Tensor

from normscope.ops.moments import Moments, two_sum


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which statistics of ``dtype`` are kept: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def channel_axes(x: Tensor) -> tuple[int, ...]:
    """Return the axes over which batch norm of ``(N, C, *)`` takes its statistics: all but the second."""
    return (0, *range(2, x.ndim))


def channelwise(values: Tensor, x: Tensor) -> Tensor:
    """View one value per channel so that it broadcasts along the second axis of ``x``."""
    return values.view(-1, *(1,) * (x.ndim - 2))


def shifted(x: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Take a constant near the mean off ``x``.

    The constant is the mean as plainly summed: at an offset of 1e6 it misses the true mean by a tenth of a standard
    deviation, which is near enough. (A channel's first value would cost no pass over ``x``, but may be an outlier.)

    Args:
        x: Values of any shape and floating type.
        axes: Axes whose elements share one mean.

    Returns:
        ``x`` minus the constant, and the constant with the reduced axes kept; both float32 or wider.
    """
    shift = x.detach().mean(axes, keepdim=True, dtype=wide(x.dtype))
    return x - shift, shift


def moments_of(x: Tensor, axes: tuple[int, ...]) -> Moments:
    """Return count, mean and sum of squared deviations of ``x`` over ``axes``, with the reduced axes kept.

    Args:
        x: Values of any shape and floating type.
        axes: Axes whose elements share one mean and one variance.

    Returns:
        The moments, float32 or wider whatever the type of ``x``.
    """
    d, shift = shifted(x, axes)
    rest = d.mean(axes, keepdim=True)
    mean, low = two_sum(shift, rest)
    m2 = (d - rest).square().sum(axes, keepdim=True)
    return Moments(x.numel() // max(1, shift.numel()), mean, low, m2)
