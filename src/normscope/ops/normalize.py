"""Normalize over a statistics set: the rules of ``standardize`` where only the output is wanted, and its moments."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import increment_version

from normscope.ops.moments import Moments
from normscope.ops.sets.batch import BATCH, StatisticsSet
from normscope.ops.shapes import check_rows
from normscope.ops.standardize import (
    PLAIN_SUM_LIMIT,
    PLAIN_SUM_LIMIT_OF_HALVES,
    affine,
    backward,
    differentiated,
    forward,
    fused_backward,
    fused_forward,
    size_of_set,
    standardize_shifted,
    tangent,
)
from normscope.ops.statistics import channelwise, remainder, shifted
from normscope.ops.track import track
from normscope.ops.ways.choose import wants_written_out, why_no_kernel
from normscope.ops.ways.kernel import activate, fused_batch_norm, fused_normalize


class _Normalize(Function):
    """``y`` alone: over a batch, its statistics tracked by the kernel itself; or over any set, its moments given.

    Mean and deviation are no outputs here, which is half of what a small batch costs. So where they must be seen as
    functions of ``x``, under a second derivative, they are taken again.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, over: StatisticsSet, extra: Any
    ) -> Tensor:
        ctx.eps, ctx.over = eps, over
        if over is BATCH:
            ctx.count = None
            if extra is None:
                y, mean, rstd, _ = fused_forward(x, weight, bias, eps)
            else:
                running_mean, running_var, share, shift, most = extra
                few = x.numel() // x.shape[1] <= PLAIN_SUM_LIMIT_OF_HALVES  # no noise to speak of, and time matters
                running = running_mean if few else None, running_var, share
                y, mean, rstd, _ = fused_forward(x, weight, bias, eps, running, most)
                if few:
                    running_mean.add_(shift, alpha=share)  # the kernel saw what is left when the shift is taken off
                else:
                    running_mean.lerp_(shift + remainder(mean, shift), share)
        else:
            ctx.count, mean = extra.count, extra.low
            rstd = (extra.variance().nan_to_num() + eps).rsqrt()
            y = over.keep(affine((x - channelwise(mean, x)) * channelwise(rstd, x), weight, bias))
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.save_for_forward(x, weight)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        over, wanted = ctx.over, ctx.needs_input_grad
        if differentiated(x, g):
            mean, rstd = _statistics(x, ctx.eps, over, ctx.count)
        elif over is BATCH:
            found = fused_backward(g, x, weight, None, None, mean, rstd, True, ctx.eps, wanted[:3])
            return *found, None, None, None  # what is not wanted comes as None
        g_x, g_weight, g_bias = backward(g, None, None, x, weight, mean, rstd, over, ctx.count)
        return g_x, g_weight if wanted[1] else None, g_bias if wanted[2] else None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, weight = ctx.saved_tensors
        mean, rstd = _statistics(x, ctx.eps, ctx.over, ctx.count)
        t, t_weight, t_bias, *_ = tangents
        return tangent(t, t_weight, t_bias, x, weight, mean, rstd, ctx.over, ctx.count)[0]


def _statistics(x: Tensor, eps: float, over: StatisticsSet, count: int | Tensor | None) -> tuple[Tensor, Tensor]:
    n = size_of_set(x, count)
    mean = over.average(x, n)
    return mean, (over.average(over.keep(x - channelwise(mean, x)).square(), n) + eps).rsqrt()


def normalize_and_track(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    running: tuple[Tensor, Tensor] | None,
    share: float,
    activation: str | None = None,
    slope: float = 0.01,
    seen: Tensor | None = None,
) -> Tensor:
    """Standardize each channel over the batch, scale, shift, activate, and move running statistics: the shortest way.

    Args:
        x: Values ``(N, C, *)``.
        weight: One gain a channel ``(C,)``, or None for 1.
        bias: One shift a channel ``(C,)``, or None for 0.
        eps: Added to the variance.
        running: Mean and variance ``(C,)``, moved in place; or None.
        share: Of this batch in them.
        activation: ``"relu"``, ``"leaky_relu"`` or None.
        slope: Of leaky ReLU.
        seen: Count of the batches in the running statistics, int64 ``()``, raised by one; or None.

    Returns:
        ``y`` in the type of ``x``.
    """
    written_out = wants_written_out()
    if not written_out and not why_no_kernel(x, weight, bias, running):
        return fused_batch_norm(x, weight, bias, eps, activation, slope, running, share, seen)
    y = _normalize_and_track(written_out, x, weight, bias, eps, running, share)
    count_batch(seen)  # only now: a forward that raises is not counted
    return activate(y, activation, slope)


def count_batch(seen: Tensor | None) -> None:
    """Raise a count of batches by one."""
    if seen is not None:
        with torch.no_grad():
            seen.add_(1)


def _normalize_and_track(
    written_out: bool,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    running: tuple[Tensor, Tensor] | None,
    share: float,
) -> Tensor:
    d, shift = shifted(x)
    dtype = d.dtype
    if (
        written_out
        or (running is not None and not running[0].dtype == running[1].dtype == dtype)
        or d.numel() // d.shape[1] > PLAIN_SUM_LIMIT
    ):
        y, moments = _normalize_shifted(x, d, shift, weight, bias, eps, BATCH, None)
        if running is not None:
            track(*running, shift + moments.low, moments.variance(unbiased=True), share)
        return y
    if x.dtype != dtype:
        weight, bias = (None if p is None else p.to(dtype) for p in (weight, bias))
    # Low precision leaves more digits to compare with, and the float32 copy of it has cost more than sums by halves do.
    most = PLAIN_SUM_LIMIT if x.dtype == dtype else PLAIN_SUM_LIMIT_OF_HALVES
    y = _Normalize.apply(d, weight, bias, eps, BATCH, None if running is None else (*running, share, shift, most))
    if running is not None:
        increment_version(running)  # as any other in-place operation does; the kernel does not
    return y if x.dtype == dtype else y.to(x.dtype)


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
    if over is BATCH:
        if x.is_cpu and not wants_written_out() and not why_no_kernel(x, weight, bias):
            return fused_normalize(x, weight, bias, eps)
        return _normalize_shifted(x, *shifted(x), weight, bias, eps, over, None)
    moments = over.moments(x.detach())
    d = over.keep(x - channelwise(moments.mean, x))
    return _normalize_shifted(x, d, moments.mean, weight, bias, eps, over, moments)


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


def _normalize_shifted(
    x: Tensor,
    d: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    over: StatisticsSet,
    moments: Moments | None,
) -> tuple[Tensor, Moments]:
    if x.dtype != d.dtype:
        weight, bias = (None if p is None else p.to(d.dtype) for p in (weight, bias))
    if moments is None:
        y, low, _, var = standardize_shifted(d, weight, bias, eps)
        n = x.numel() // x.shape[1]
        moments = Moments(n, shift, remainder(low.detach(), shift), var.detach() * (n - 1))
    elif wants_written_out():
        y = forward(d, weight, bias, eps, over, moments.count)[0]
    else:
        y = _Normalize.apply(d, weight, bias, eps, over, moments)
    return (y if y.dtype == x.dtype else y.to(x.dtype)), moments
