"""Batch norm by torch's kernels, or written out in its operations: the way that is there for every tensor.

Torch's kernels are right for values near zero mean, so a constant near its mean is taken off each channel first.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import increment_version

from normscope.ops.activation import activate
from normscope.ops.moments import Moments
from normscope.ops.sets.batch import BATCH, StatisticsSet
from normscope.ops.standardization import affine, backward, forward, size_of_set, tangent
from normscope.ops.statistics import channel_axes, channelwise, remainder, shifted
from normscope.ops.track import count_batch, track
from normscope.ops.ways.choose import differentiated, wants_written_out

# Above this many values a channel the fused kernel's plain sums, where it takes them, are off by more than 1e-5.
PLAIN_SUM_LIMIT = 2**17
PLAIN_SUM_LIMIT_OF_HALVES = 2**11
fused_backward = torch.ops.aten.native_batch_norm_backward.default


def fused_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    running: tuple[Tensor | None, Tensor, float] | None = None,
    most: int = PLAIN_SUM_LIMIT,
) -> tuple[Tensor, ...]:
    """Do what ``forward`` does with torch's kernel, which is right for values near zero mean.

    If a running mean (or None), a running variance and a share of this batch in them are given, they are moved, and the
    moved variance is returned. Above ``most`` values a channel the kernel's plain sums are not taken.
    """
    n = x.numel() // x.shape[1]
    if n > most and (x.ndim == 2 or not x.is_contiguous()):
        # Across channels side by side in memory the kernel adds plainly; torch's own sums go by halves.
        mean = x.mean(channel_axes(x))
        var = x.square().mean(channel_axes(x)) - mean.square()
        y, _, _ = torch.native_batch_norm(x, weight, bias, mean, var, False, 0.0, eps)
        unbiased = var * (n / (n - 1))
        if running is not None:
            unbiased = running[1].mul_(1 - running[2]).add_(unbiased, alpha=running[2])
        return y, mean, (var + eps).rsqrt(), unbiased
    if running is not None:
        unused, var, share = torch.empty_like(running[1]) if running[0] is None else running[0], *running[1:]
        y, mean, rstd = torch.native_batch_norm(x, weight, bias, unused, var, True, share, eps)
        return y, mean, rstd, var
    # rstd does not hold a variance far below eps; run with momentum 1, the running variance is the variance itself.
    unused, var = x.new_zeros(2, x.shape[1]).unbind()
    y, mean, rstd = torch.native_batch_norm(x, weight, bias, unused, var, True, 1.0, eps)
    return y, mean, rstd, var


class _Standardize(Function):
    """The rules above, and torch's fused kernels where nothing will be differentiated through them.

    In the older form, with the context in ``forward``: ``setup_context`` doubles what a small batch costs, because
    torch inspects the signature at every call, and is there for torch.func alone, which does not come here.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        y, mean, rstd, var = fused_forward(x, weight, bias, eps)
        ctx.eps = eps
        ctx.mark_non_differentiable(var)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, mean, rstd)
        ctx.save_for_forward(x, weight, mean, rstd)
        return y, mean, rstd, var

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_mean: Tensor | None, g_rstd: Tensor | None, _: Any) -> tuple[Any, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        # A kernel cannot be differentiated: neither again (grad mode is on here under create_graph only) nor forward.
        if g is None or g_mean is not None or g_rstd is not None or differentiated(x, g):
            found = backward(g, g_mean, g_rstd, x, weight, mean, rstd)
        else:
            found = fused_backward(g, x, weight, None, None, mean, rstd, True, ctx.eps, wanted)
        return *(part if want else None for part, want in zip(found, wanted, strict=True)), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, ...]:
        t, t_weight, t_bias, _ = tangents
        x, weight, mean, rstd = ctx.saved_tensors
        return *tangent(t, t_weight, t_bias, x, weight, mean, rstd), None


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
            return *found, None, None, None  # the kernel returns None for gradients that are not wanted
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


def batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    slope: float,
    running: tuple[Tensor, Tensor] | None,
    share: float,
    seen: Tensor | None,
) -> Tensor:
    """Normalize by the statistics of the batch, scale, shift and activate; move running statistics.

    The arguments are those of `normscope.ops.ways.kernel.batch_norm`.
    """
    d, shift = shifted(x)
    dtype = d.dtype
    if (
        wants_written_out()
        or (running is not None and not running[0].dtype == running[1].dtype == dtype)
        or d.numel() // d.shape[1] > PLAIN_SUM_LIMIT
    ):
        y, moments = normalize_shifted(x, d, shift, weight, bias, eps)
        if running is not None:
            track(*running, shift + moments.low, moments.variance(unbiased=True), share)
    else:
        if x.dtype != dtype:
            weight, bias = (None if p is None else p.to(dtype) for p in (weight, bias))
        # Low precision leaves more digits to compare with, and its float32 copy has cost more than sums by halves do.
        most = PLAIN_SUM_LIMIT if x.dtype == dtype else PLAIN_SUM_LIMIT_OF_HALVES
        y = _Normalize.apply(d, weight, bias, eps, BATCH, None if running is None else (*running, share, shift, most))
        if running is not None:
            increment_version(running)  # as any other in-place operation does; the kernel does not
        y = y if x.dtype == dtype else y.to(x.dtype)
    count_batch(seen)  # only now: a forward that raises is not counted
    return activate(y, activation, slope)


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Moments]:
    """Normalize by the statistics of the batch, scale and shift; return the moments ``(C,)`` of the batch too."""
    return normalize_shifted(x, *shifted(x), weight, bias, eps)


def normalize_shifted(
    x: Tensor, d: Tensor, shift: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Moments]:
    """Do what ``normalize`` does, where ``d`` is ``x`` less ``shift``, a constant near the mean of each channel."""
    if x.dtype != d.dtype:
        weight, bias = (None if p is None else p.to(d.dtype) for p in (weight, bias))
    y, low, _, var = standardize_shifted(d, weight, bias, eps)
    n = x.numel() // x.shape[1]
    moments = Moments(n, shift, remainder(low.detach(), shift), var.detach() * (n - 1))
    return (y if y.dtype == x.dtype else y.to(x.dtype)), moments


def normalize_over(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, over: StatisticsSet
) -> tuple[Tensor, Moments]:
    """Normalize by the statistics of a set other than the batch, scale and shift; return its moments ``(C,)`` too."""
    moments = over.moments(x.detach())
    d = over.keep(x - channelwise(moments.mean, x))
    if x.dtype != d.dtype:
        weight, bias = (None if p is None else p.to(d.dtype) for p in (weight, bias))
    if wants_written_out():
        y = forward(d, weight, bias, eps, over, moments.count)[0]
    else:
        y = _Normalize.apply(d, weight, bias, eps, over, moments)
    return (y if y.dtype == x.dtype else y.to(x.dtype)), moments


def standardize_shifted(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
    """Do what ``forward`` does over the batch, by the rules where they are allowed; ``x`` is near zero mean."""
    return (forward if wants_written_out() else _Standardize.apply)(x, weight, bias, eps)
