"""Normalize over a statistics set, by the way that there is for the tensors."""

import math

from torch import Tensor

from normscope.ops.moments import Moments
from normscope.ops.sets.batch import BATCH, StatisticsSet
from normscope.ops.shapes import check_rows
from normscope.ops.statistics import channelwise, shifted
from normscope.ops.ways import torchs
from normscope.ops.ways.of import way_of


def normalize(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, over: StatisticsSet = BATCH
) -> tuple[Tensor, Moments]:
    """Standardize each channel over a statistics set, then scale and shift it.

    Args:
        x: Values ``(N, C, *)``.
        weight: One gain a channel ``(C,)``, or None for 1.
        bias: One shift a channel ``(C,)``, or None for 0.
        eps: Added to the variance, in squared units of ``x``.
        over: The set that the statistics come from.

    Returns:
        ``y`` in the type of ``x``, zero outside the set; and the moments of the set ``(C,)``, constants to autograd.

    Raises:
        ShapeError: ``weight`` or ``bias`` does not have one value a channel.
    """
    check_rows(x, ("weight", "bias"), (weight, bias))
    if over is not BATCH:
        return torchs.normalize_over(x, weight, bias, eps, over)
    return way_of(x, weight, bias, moments=True).normalize(x, weight, bias, eps)


def statistics(x: Tensor, over: StatisticsSet = BATCH) -> tuple[Tensor, Tensor]:
    """Return the mean and the biased variance of each channel over a set, differentiable to any order.

    Args:
        x: Values ``(N, C, *)``.
        over: The set.

    Returns:
        Mean and variance ``(C,)``, float32 or wider.
    """
    moments = over.moments(x.detach())
    d = over.keep(x - channelwise(moments.mean, x))
    low = over.average(d, moments.count)
    var = over.average(over.keep(d - channelwise(low, d)).square(), moments.count)
    return moments.mean + low, var


def standardize_affine(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Standardize each channel, then scale and shift it.

    Args:
        x: Values ``(N, C, *)``.
        weight: One gain a channel ``(C,)``, or None for 1.
        bias: One shift a channel ``(C,)``, or None for 0.
        eps: Added to the variance, in squared units of ``x``.

    Returns:
        ``y`` in the type of ``x``; then ``(C,)`` each, float32 or wider: a constant near the mean, what the mean has
        beyond that constant, the reciprocal standard deviation, and the unbiased variance. ``y``, the second and the
        third are differentiable.
    """
    d, shift = shifted(x)
    if x.dtype != d.dtype:
        weight, bias = (None if p is None else p.to(d.dtype) for p in (weight, bias))
    y, low, rstd, var = torchs.standardize_shifted(d, weight, bias, eps)
    return (y if y.dtype == x.dtype else y.to(x.dtype)), shift, low, rstd, var


def standardize(x: Tensor, axes: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    """Standardize ``x`` over ``axes``.

    Args:
        x: Values of any shape.
        axes: Axes whose elements share one mean and one variance.
        eps: Added to the variance, in squared units of ``x``.

    Returns:
        The standardized values in the type of ``x``, and the reciprocal standard deviation with the reduced axes kept,
        float32 or wider. Both are differentiable.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]])
        >>> xhat, rstd = standardize(x, (1,), eps=0.0)
        >>> xhat[0].equal(xhat[1])  # rows that differ in scale alone are the same afterwards
        True
    """
    axes = tuple(sorted(axis % x.ndim for axis in axes))
    kept = tuple(axis for axis in range(x.ndim) if axis not in axes)
    rstd_shape = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    if kept == (1,):
        xhat, _, _, rstd, _ = standardize_affine(x, None, None, eps)
        return xhat, rstd.view(rstd_shape)
    order = axes + kept
    front = x.permute(order)
    columns = front.reshape(-1, math.prod(rstd_shape))
    xhat, _, _, rstd, _ = standardize_affine(columns, None, None, eps)
    back = sorted(range(x.ndim), key=order.__getitem__)
    return xhat.view(front.shape).permute(back), rstd.view(rstd_shape)
