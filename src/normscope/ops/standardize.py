r"""Subtract the mean, divide by the standard deviation, then scale and shift: the operation under every norm.

Angle brackets are the mean over the statistics set, which has :math:`n` elements in a channel of ``(N, C, *)``: the
batch, or any set of `normscope.ops.sets`. Bars are cotangents.

.. math:: \hat x = (x - \mu)\, r, \qquad r = (\sigma^2 + \epsilon)^{-1/2}, \qquad y = \gamma \hat x + \beta,

.. math:: \bar x = \gamma r \bigl(\bar y - \langle \bar y \rangle - \hat x \langle \hat x\, \bar y \rangle \bigr)
          + \bigl(\bar\mu - r^2 \hat x\, \bar r \bigr) / n,
          \qquad \bar\gamma = \sum \hat x\, \bar y, \qquad \bar\beta = \sum \bar y .

The Jacobian of :math:`\hat x` is symmetric, so its tangent rule is its cotangent rule.
Ioffe & Szegedy (2015), section 3; Santurkar et al. (2018), fact C.1.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from normscope.ops.sets.batch import BATCH, StatisticsSet
from normscope.ops.statistics import channel_axes, channelwise, shifted
from normscope.ops.ways.choose import wants_written_out

# Above this many values a channel the fused kernel's plain sums, where it takes them, are off by more than 1e-5.
PLAIN_SUM_LIMIT = 2**17
PLAIN_SUM_LIMIT_OF_HALVES = 2**11
fused_backward = torch.ops.aten.native_batch_norm_backward.default


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    over: StatisticsSet = BATCH,
    count: int | Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return ``y``; then one a channel: mean, reciprocal standard deviation, and unbiased variance."""
    n = size_of_set(x, count)
    mean = over.average(x, n)
    centred = over.keep(x - channelwise(mean, x))
    var = over.average(centred.square(), n)
    rstd = (var + eps).rsqrt()
    y = over.keep(affine(centred * channelwise(rstd, x), weight, bias))
    return y, mean, rstd, var * (n / ((n - 1).clamp(min=1) if isinstance(n, Tensor) else max(n - 1, 1)))


def backward(
    g: Tensor | None,
    g_mean: Tensor | None,
    g_rstd: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    over: StatisticsSet = BATCH,
    count: int | Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Return the cotangents of ``x``, ``weight`` and ``bias``; a cotangent of None is zero."""
    xhat = over.keep((x - channelwise(mean, x)) * channelwise(rstd, x))
    return backward_of_xhat(g, g_mean, g_rstd, xhat, weight, rstd, over, count)


def backward_of_xhat(
    g: Tensor | None,
    g_mean: Tensor | None,
    g_rstd: Tensor | None,
    xhat: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    over: StatisticsSet = BATCH,
    count: int | Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """Do what ``backward`` does from the standardized values."""
    axes, n = channel_axes(xhat), size_of_set(xhat, count)
    g_x = g_weight = g_bias = None
    if g is not None:
        g = over.keep(g)
        scale = rstd if weight is None else rstd * weight
        g_x = channelwise(scale, xhat) * project(g, xhat, over, n)
        g_weight, g_bias = (g * xhat).sum(axes), g.sum(axes)
    if g_mean is not None:
        g_x = (channelwise(g_mean / n, xhat) + (0 if g_x is None else g_x)).expand_as(xhat)
    if g_rstd is not None:
        g_x = channelwise(-g_rstd * rstd.square() / n, xhat) * xhat + (0 if g_x is None else g_x)
    return None if g_x is None else over.keep(g_x), g_weight, g_bias


def tangent(
    t: Tensor | None,
    t_weight: Tensor | None,
    t_bias: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    over: StatisticsSet = BATCH,
    count: int | Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return the tangents of ``y``, mean and reciprocal standard deviation; a tangent of None is zero."""
    n = size_of_set(x, count)
    xhat = over.keep((x - channelwise(mean, x)) * channelwise(rstd, x))
    t = torch.zeros_like(x) if t is None else over.keep(t)
    t_y = affine(channelwise(rstd, x) * project(t, xhat, over, n), weight, t_bias)
    if t_weight is not None:
        t_y = t_y + xhat * channelwise(t_weight, x)
    return over.keep(t_y), over.average(t, n), -rstd.square() * over.average(t * xhat, n)


def project(t: Tensor, xhat: Tensor, over: StatisticsSet = BATCH, count: int | Tensor | None = None) -> Tensor:
    """Remove from each channel of ``t`` its mean and its component along ``xhat``."""
    n = size_of_set(t, count)
    return t - channelwise(over.average(t, n), t) - xhat * channelwise(over.average(t * xhat, n), t)


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scale and shift each channel of ``(N, C, *)``; None for a gain of 1, or a shift of 0."""
    if weight is None:
        return x if bias is None else x + channelwise(bias, x)
    if bias is None:
        return x * channelwise(weight, x)
    return torch.addcmul(channelwise(bias, x), x, channelwise(weight, x))


def size_of_set(x: Tensor, count: int | Tensor | None) -> int | Tensor:
    """Return how many values a channel has: those of the batch, where a set does not say."""
    return x.numel() // x.shape[1] if count is None else count


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


def differentiated(x: Tensor, g: Tensor) -> bool:
    """Say whether a backward that is running is itself being differentiated."""
    if torch.is_grad_enabled():
        return True
    # The level is below 0 but for a few users of dual numbers, and looking at it is ten times cheaper.
    return forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(p).tangent is not None for p in (x, g))


def standardize_shifted(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
    """Do what ``forward`` does over the batch, by the rules where they are allowed; ``x`` is near zero mean."""
    return (forward if wants_written_out() else _Standardize.apply)(x, weight, bias, eps)


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
    y, low, rstd, var = standardize_shifted(d, weight, bias, eps)
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
