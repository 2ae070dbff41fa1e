r"""Layer, RMS, group and instance norm by the CPU's kernel, with rules for every order of derivative.

A row is a set of values with statistics of its own; a gain and a shift belong to a column of the rows or to a channel.
Angle brackets are the mean over a row, bars are cotangents, and $\mu$ is 0 in RMS norm:

$$\hat x = (x - \mu)\, r, \qquad r = (\langle (x - \mu)^2 \rangle + \epsilon)^{-1/2}, \qquad
y = \gamma \hat x + \beta,$$

$$\bar x = r (u - \langle u \rangle - \hat x \langle \hat x u \rangle), \qquad u = \gamma \bar y,$$

with $\langle u \rangle$ where a mean was taken off. The Jacobian of $\hat x$ is symmetric, so its tangent rule is its
cotangent rule. Where a derivative is itself differentiated these rules are run as they stand here, in torch operations.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from normscope.kernels import cpu
from normscope.ops.statistics import channelwise, shifted, wide
from normscope.ops.ways.choose import rows_by_kernel
from normscope.ops.ways.kernel import must_be_written_out


class Rows(NamedTuple):
    """How values are divided into rows, and what a row is divided by.

    Attributes:
        number: How many there are.
        eps: Added to the variance or mean square.
        groups: Rows of a sample that have gains of their own; 0 where a gain belongs to a column, for all rows alike.
        centred: Whether the mean is taken off.
    """

    number: int
    eps: float
    groups: int = 0
    centred: bool = True


def standardized(x: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Return the standardized values ``(R, n)``, float32 or wider, and ``(R, 1)`` what they were multiplied with."""
    if rows.centred:
        d = shifted(x.reshape(1, rows.number, -1))[0][0]
        d = d - d.mean(1, keepdim=True)
    else:
        d = x.to(wide(x.dtype)).reshape(rows.number, -1)
    rstd = (d.square().mean(1, keepdim=True) + rows.eps).rsqrt()
    return d * rstd, rstd


def projected(t: Tensor, xhat: Tensor, rstd: Tensor, rows: Rows) -> Tensor:
    """Return the product of values ``(R, n)`` with the Jacobian of the standardized values, which is symmetric."""
    along = xhat * (t * xhat).mean(1, keepdim=True)
    return rstd * (t - t.mean(1, keepdim=True) - along) if rows.centred else rstd * (t - along)


def backward(g: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, rows: Rows) -> tuple[Any, ...]:
    """Return the cotangents of ``x``, ``weight`` and ``bias``, differentiable; None for a parameter that is None."""
    xhat, rstd = standardized(x, rows)
    g = g.to(xhat.dtype)
    onto_xhat = (g if weight is None else g * _gain(weight, x, rows)).reshape(xhat.shape)
    g_x = projected(onto_xhat, xhat, rstd, rows).view(x.shape).to(x.dtype)
    return g_x, _summed(g * xhat.view(x.shape), weight, x, rows), _summed(g, bias, x, rows)


def tangent(
    t: Tensor | None, t_weight: Tensor | None, t_bias: Tensor | None, x: Tensor, weight: Tensor | None, rows: Rows
) -> Tensor:
    """Return the tangent of ``y``; a tangent of None is zero."""
    xhat, rstd = standardized(x, rows)
    found = torch.zeros_like(x, dtype=xhat.dtype)
    if t is not None:
        through_x = projected(t.to(xhat.dtype).reshape(xhat.shape), xhat, rstd, rows).view(x.shape)
        found = found + (through_x if weight is None else through_x * _gain(weight, x, rows))
    if t_weight is not None:
        found = found + xhat.view(x.shape) * _gain(t_weight, x, rows)
    if t_bias is not None:
        found = found + _gain(t_bias, x, rows)
    return found.to(x.dtype)


def _gain(values: Tensor, x: Tensor, rows: Rows) -> Tensor:
    values = values.to(wide(x.dtype))
    return channelwise(values, x) if rows.groups else values


def _summed(values: Tensor, like: Tensor | None, x: Tensor, rows: Rows) -> Tensor | None:
    return None if like is None else values.sum_to_size(_gain(like, x, rows).shape).reshape(like.shape).to(like.dtype)


class _ByKernel(Function):
    """The kernel, and the rules above where something will be differentiated through them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, rows: Rows, keep: list[Tensor] | None
    ) -> Tensor:
        y, saved = cpu.rows_forward(x, weight, bias, *_division(x, rows), rows.centred, rows.eps)
        ctx.rows, ctx.kept = rows, saved
        ctx.save_for_backward(x, weight, bias)
        if forward_ad._current_level >= 0:  # saving costs time, and is for forward derivatives alone
            ctx.save_for_forward(x, weight, bias)
        if keep is not None:
            keep.append(saved)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, weight, bias = ctx.saved_tensors
        rows, wanted = ctx.rows, ctx.needs_input_grad[:3]
        if must_be_written_out(x, g) or not rows_by_kernel(x, weight, bias):
            found = backward(g, x, weight, bias, rows)
            return *(part if want else None for part, want in zip(found, wanted, strict=True)), None, None
        division = _division(x, rows)
        found = cpu.rows_backward(g, x.contiguous(), weight, bias, ctx.kept, *division, rows.centred, rows.eps, wanted)
        return *found, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, weight, _ = ctx.saved_tensors
        t, t_weight, t_bias = tangents[:3]
        return tangent(t, t_weight, t_bias, x, weight, ctx.rows)


# The end of Function.apply. Its beginning is for torch.func, which does not come here, and costs microseconds.
_apply = super(Function, _ByKernel).apply


def _division(x: Tensor, rows: Rows) -> tuple[int, int, int]:
    """Return the number of rows, of rows that differ in their gains, and of values that share a gain."""
    span = x.numel() // (x.shape[0] * x.shape[1]) if rows.groups else 1
    return rows.number, rows.groups or 1, span


def by_kernel(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, rows: Rows, keep: list[Tensor] | None = None
) -> Tensor:
    """Standardize rows, then scale and shift; for tensors that ``rows_by_kernel`` takes.

    Args:
        x: Values: at least one.
        weight: Gains: of the columns of a row, in any shape, or with ``rows.groups`` of the channels ``(C,)`` of
            ``(N, C, *)``; None for 1.
        bias: Shifts, likewise; None for 0.
        rows: How ``x`` is divided into rows, in the order of its elements.
        keep: A list that gets what the kernel saves too: ``(6, R)``, rows of `normscope.kernels.cpu`.

    Returns:
        The values in the type and shape of ``x``, contiguous.
    """
    return _apply(x.contiguous(), weight, bias, rows, keep)
