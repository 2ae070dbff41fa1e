r"""Subtract the mean, divide by the standard deviation, then scale and shift: the operation under every norm.

With :math:`n` elements that share one statistic, angle brackets their mean, and :math:`\gamma, \beta` one per channel,

.. math:: \hat x = (x - \mu)\, r, \qquad r = (\sigma^2 + \epsilon)^{-1/2}, \qquad y = \gamma \hat x + \beta,

.. math:: \bar x = \gamma r \bigl(\bar y - \langle \bar y \rangle - \hat x \langle \hat x\, \bar y \rangle \bigr)
          + \bigl(\bar\mu + 2 (x - \mu)\, \overline{\sigma^2} \bigr) / n,
          \qquad \bar\gamma = \sum \hat x\, \bar y, \qquad \bar\beta = \sum \bar y .

Bars are cotangents. The Jacobian of :math:`\hat x` is symmetric, so its tangent rule is its cotangent rule.
Ioffe & Szegedy (2015), section 3; Santurkar et al. (2018), fact C.1.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from normscope.ops.statistics import channel_axes, channelwise, shifted

Axes = tuple[int, ...]


def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, axes: Axes, eps: float) -> tuple[Tensor, ...]:
    """Return ``y``, and mean and biased variance with the reduced axes kept."""
    mean = x.mean(axes, keepdim=True)
    var = (x - mean).square().mean(axes, keepdim=True)
    return affine((x - mean) * (var + eps).rsqrt(), weight, bias), mean, var


def backward(
    g: Tensor | None,
    g_mean: Tensor | None,
    g_var: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    var: Tensor,
    axes: Axes,
    eps: float,
) -> tuple[Tensor | None, ...]:
    """Return the cotangents of ``x``, ``weight`` and ``bias``; a cotangent of None is zero."""
    n = x.numel() // mean.numel()
    g_x = g_weight = g_bias = None
    if g is not None:
        rstd = (var + eps).rsqrt()
        xhat = (x - mean) * rstd
        g_x = rstd * _project(g if weight is None else g * channelwise(weight, x), xhat, axes)
        g_weight, g_bias = (g * xhat).sum(channel_axes(x)), g.sum(channel_axes(x))
    if g_mean is not None:
        g_x = g_mean / n + (0 if g_x is None else g_x)
    if g_var is not None:
        g_x = g_var * (x - mean) * (2 / n) + (0 if g_x is None else g_x)
    return None if g_x is None else g_x.expand_as(x), g_weight, g_bias


def tangent(
    t: Tensor | None,
    t_weight: Tensor | None,
    t_bias: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    var: Tensor,
    axes: Axes,
    eps: float,
) -> tuple[Tensor, ...]:
    """Return the tangents of ``y``, mean and variance; a tangent of None is zero."""
    rstd = (var + eps).rsqrt()
    xhat = (x - mean) * rstd
    t = torch.zeros_like(x) if t is None else t
    t_y = affine(rstd * _project(t, xhat, axes), weight, t_bias)
    if t_weight is not None:
        t_y = t_y + xhat * channelwise(t_weight, x)
    return t_y, t.mean(axes, keepdim=True), 2 * ((x - mean) * t).mean(axes, keepdim=True)


def affine(xhat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scale and shift each channel of ``(N, C, *)``; None for a gain of 1, or a shift of 0."""
    y = xhat if weight is None else xhat * channelwise(weight, xhat)
    return y if bias is None else y + channelwise(bias, y)


def _project(t: Tensor, xhat: Tensor, axes: Axes) -> Tensor:
    """Remove from ``t`` its mean and its component along ``xhat``."""
    return t - t.mean(axes, keepdim=True) - xhat * (t * xhat).mean(axes, keepdim=True)


class _Standardize(Function):
    """The three rules above, with torch's fused kernel where the statistics are a batch norm's."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, axes: Axes, eps: float) -> tuple[Tensor, ...]:
        if axes != channel_axes(x):
            return forward(x, weight, bias, axes, eps)
        # The kernel gives 1/sqrt(var + eps), which does not hold a variance far below eps; run with momentum 1 its
        # running variance is the variance itself, unbiased.
        mean, var = x.new_zeros(2, x.shape[1]).unbind()
        y, mean, _ = torch.native_batch_norm(x, weight, bias, mean, var, True, 1.0, eps)
        n = x.numel() // x.shape[1]
        return y, channelwise(mean, x).unsqueeze(0), channelwise(var * ((n - 1) / n), x).unsqueeze(0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, ctx.axes, ctx.eps = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, *output[1:])
        ctx.save_for_forward(x, weight, *output[1:])

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_mean: Tensor | None, g_var: Tensor | None) -> tuple[Any, ...]:
        x, weight, mean, var = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        # A kernel cannot be differentiated: not again (grad mode is on here under create_graph only), nor forward.
        differentiated = torch.is_grad_enabled() or _is_dual(x) or (g is not None and _is_dual(g))
        if g is None or g_mean is not None or g_var is not None or differentiated or ctx.axes != channel_axes(x):
            found = backward(g, g_mean, g_var, x, weight, mean, var, ctx.axes, ctx.eps)
        else:
            rstd = (var + ctx.eps).rsqrt()
            found = torch.ops.aten.native_batch_norm_backward(
                g, x, weight, None, None, mean.flatten(), rstd.flatten(), True, ctx.eps, wanted
            )
        return *(part if want else None for part, want in zip(found, wanted, strict=True)), None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        t, t_weight, t_bias, *_ = tangents
        return tangent(t, t_weight, t_bias, *ctx.saved_tensors, ctx.axes, ctx.eps)


def _is_dual(x: Tensor) -> bool:
    return forward_ad.unpack_dual(x).tangent is not None


def standardize_affine(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, axes: Axes, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standardize over ``axes``, then scale and shift each channel.

    Args:
        x: Values ``(N, C, *)``.
        weight: One gain a channel ``(C,)``, or None for 1.
        bias: One shift a channel ``(C,)``, or None for 0.
        axes: Axes whose elements share one mean and one variance.
        eps: Added to the variance, in squared units of ``x``.

    Returns:
        ``y`` in the type of ``x``; then, with the reduced axes kept and float32 or wider, a constant near the mean,
        what the mean has beyond that constant, and the biased variance. The last two are differentiable.
    """
    d, shift = shifted(x, axes)
    weight = None if weight is None else weight.to(d.dtype)
    bias = None if bias is None else bias.to(d.dtype)
    # The compiler refuses a jvp of one's own, and fuses the written-out forward by itself.
    run = forward if torch.compiler.is_compiling() else _Standardize.apply
    y, low, var = run(d, weight, bias, axes, eps)
    return y.to(x.dtype), shift, low, var


def standardize(x: Tensor, axes: Axes, eps: float) -> tuple[Tensor, Tensor]:
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
    xhat, _, _, var = standardize_affine(x, None, None, tuple(sorted(axis % x.ndim for axis in axes)), eps)
    return xhat, (var + eps).rsqrt()
