r"""Mean and variance of a batch that do not drown in an offset.

In float32, 1e6 + randn summed as it is has a mean wrong by as much as its standard deviation is wide, and
$x\,a + (\beta - \mu a)$ loses what is left. So a constant close to the mean is taken off first,
$d = x - c$: the difference of nearby floats is exact (Sterbenz), and all that follows is done on values as large
as their own deviations. Standardization does not see a shift, to any order of derivative, so $c$ is a constant
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
    return values if x.ndim == 2 else values.view(-1, *(1,) * (x.ndim - 2))


def shifted(x: Tensor) -> tuple[Tensor, Tensor]:
    """Take a constant near its mean off each channel.

    The constant is the mean as plainly summed: at an offset of 1e6 it misses the true mean by a tenth of a standard
    deviation, which is near enough. (A channel's first value would cost no pass over ``x``, but may lie far from it.)

    Args:
        x: Values ``(N, C, *)`` of any floating type.

    Returns:
        ``x`` minus the constants, and the constants ``(C,)``; both float32 or wider.
    """
    shift = x.detach().mean(channel_axes(x), dtype=wide(x.dtype))
    return x - channelwise(shift, x), shift


def remainder(low: Tensor, shift: Tensor) -> Tensor:
    """Limit the low part of a mean to a few roundings of its high part: the excess is noise.

    That constant is itself the mean, but for a few roundings of its own size: what lies beyond those is the rounding of
    ``x - shift``, alike for all values of one binade, and of the kernel's sums, which together are more than the
    constant is off where the mean is small beside the standard deviation.

    Args:
        low: The mean of ``x - shift``, as the kernel found it ``(C,)``.
        shift: The constants ``(C,)``.

    Returns:
        ``low``, but not more than some roundings of ``shift``.
    """
    most = shift.abs() * (4 * torch.finfo(shift.dtype).eps)
    return torch.minimum(torch.maximum(low, -most), most)


def moments_of(x: Tensor, *, overwrite: bool = False) -> Moments:
    """Return count, mean and sum of squared deviations of each channel.

    Args:
        x: Values ``(N, C, *)`` of any floating type.
        overwrite: Whether ``x``, which must be float32 or wider, may be used up: half the time, as no memory is taken.

    Returns:
        The moments ``(C,)``, float32 or wider whatever the type of ``x``.
    """
    if overwrite:
        shift = x.mean(channel_axes(x))
        d = x.sub_(channelwise(shift, x))
        rest = d.mean(channel_axes(x))
        mean, low = two_sum(shift, rest)
        m2 = d.sub_(channelwise(rest, d)).square_().sum(channel_axes(x))
        return Moments(x.numel() // x.shape[1], mean, low, m2)
    d, shift = shifted(x)
    rest = d.mean(channel_axes(x))
    mean, low = two_sum(shift, rest)
    m2 = (d - channelwise(rest, d)).square().sum(channel_axes(x))
    return Moments(x.numel() // x.shape[1], mean, low, m2)
