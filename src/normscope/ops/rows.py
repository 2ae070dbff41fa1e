r"""Standardize each row of a matrix: the rules of ``standardize`` with a row as a channel, and torch's kernel for rows.

Gain and shift belong to the columns here: with $\gamma_j$ and $\beta_j$,
$y_{ij} = \gamma_j \hat x_{ij} + \beta_j$, hence
$\bar\gamma_j = \sum_i \hat x_{ij} \bar y_{ij}$ and $\bar\beta_j = \sum_i \bar y_{ij}$.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from normscope.ops.standardization import (
    backward as channels_backward,
    forward as channels_forward,
    tangent as channels_tangent,
)
from normscope.ops.statistics import shifted
from normscope.ops.ways.choose import is_written_out


def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``y``, and mean and reciprocal standard deviation of each row."""
    y, mean, rstd, _ = channels_forward(x[None], None, None, eps)
    return columnwise(y[0], weight, bias), mean, rstd


def backward(g: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cotangents of ``x``, ``weight`` and ``bias``."""
    onto_xhat = g if weight is None else g * weight
    g_x, _, _ = channels_backward(onto_xhat[None], None, None, x[None], None, mean, rstd)
    assert g_x is not None
    xhat = (x - mean[:, None]) * rstd[:, None]
    return g_x[0], (g * xhat).sum(0), g.sum(0)


def tangent(
    t: Tensor | None,
    t_weight: Tensor | None,
    t_bias: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
) -> Tensor:
    """Return the tangent of ``y``; a tangent of None is zero."""
    t_xhat, _, _ = channels_tangent(None if t is None else t[None], None, None, x[None], None, mean, rstd)
    t_y = columnwise(t_xhat[0], weight, t_bias)
    return t_y if t_weight is None else t_y + (x - mean[:, None]) * rstd[:, None] * t_weight


def columnwise(xhat: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Scale and shift the columns, or whatever the parameters broadcast to; None for a gain of 1, or a shift of 0."""
    y = xhat if weight is None else xhat * weight
    return y if bias is None else y + bias


class _Rows(Function):
    """The rules above, and torch's fused kernels where nothing will be differentiated through them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
        y, mean, rstd = torch.native_layer_norm(x, x.shape[1:], weight, bias, eps)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.save_for_forward(x, weight, bias, mean, rstd)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        # Grad mode is on here under create_graph only. What the kernel found is no function of x to autograd, so the
        # statistics are then taken anew.
        if torch.is_grad_enabled() or any(forward_ad.unpack_dual(v).tangent is not None for v in (x, g)):
            _, mean, rstd = forward(x, None, None, ctx.eps)
            found: tuple[Any, ...] = backward(g, x, weight, mean, rstd)
        else:
            found = torch.ops.aten.native_layer_norm_backward(g, x, x.shape[1:], mean, rstd, weight, bias, wanted)
        return *(part if want else None for part, want in zip(found, wanted, strict=True)), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        t, t_weight, t_bias, _ = tangents
        x, weight, _, mean, rstd = ctx.saved_tensors
        return tangent(t, t_weight, t_bias, x, weight, mean.flatten(), rstd.flatten())


def standardize_rows(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Standardize each row, then scale and shift each column.

    Args:
        x: Values ``(R, n)``, at least one.
        weight: Gain of each column ``(n,)``, or None for 1.
        bias: Shift of each column ``(n,)``, or None for 0.
        eps: Added to the variance, in squared units of ``x``.

    Returns:
        The values ``(R, n)``, float32 or wider.
    """
    d = shifted(x[None])[0][0]
    weight, bias = (None if p is None else p.to(d.dtype) for p in (weight, bias))
    if is_written_out():
        return forward(d, weight, bias, eps)[0]
    return _Rows.apply(d, weight, bias, eps)
