r"""Batch norm that overwrites its input, and takes the standardized values back from its output.

$$\hat x = (\phi^{-1}(z) - \beta) / \gamma, \qquad z = \phi(\gamma \hat x + \beta),$$

for no activation and for leaky ReLU $\phi$, which can be inverted: neither the input nor the standardized
values are kept (Rota Bulo, Porzi & Kontschieder, 2018, section 3, "In-Place ABN II"). ReLU cannot: the gradient needs
$\hat x$ where the output is zero.

Rounding $z$ moves $\hat x$ by $(|\hat x| + |\beta / \gamma|)$ units in the last place, so a channel
with a gain near 0 or a far larger shift cannot be taken back: `can_be_inverted`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from normscope.kernels.cpu import RSTD, plan
from normscope.ops.moments import Moments
from normscope.ops.shapes import check_rows
from normscope.ops.standardization import backward_of_xhat
from normscope.ops.statistics import channelwise, moments_of
from normscope.ops.ways.choose import wants_written_out, why_no_kernel
from normscope.ops.ways.kernel import (
    How,
    gradients,
    moments_of_saved,
    must_be_written_out,
    run_fused,
)
from normscope.ops.ways.of import way_of
from normscope.ops.ways.ownership import is_sole_owner

# The gain at least this, and the shift at most so many gains: then x-hat comes back to 8 units in the last place.
LEAST_GAIN, MOST_SHIFT = 1e-6, 8.0


def can_be_inverted(weight: Tensor | None, bias: Tensor | None) -> bool:
    """Say whether the standardized values can be taken back from the output in every channel.

    That is, ``|weight| >= 1e-6`` and ``|bias| <= 8 |weight|``. Reads the values: on a GPU it waits for them.

    Args:
        weight: Gain of each channel ``(C,)``, or None for 1.
        bias: Shift of each channel ``(C,)``, or None for 0.
    """
    with torch.no_grad():
        if weight is None:
            return bias is None or bool((bias.abs() <= MOST_SHIFT).all())
        gain = weight.abs()
        fits = gain >= LEAST_GAIN
        return bool((fits if bias is None else fits & (bias.abs() <= MOST_SHIFT * gain)).all())


_NONE = (None,) * 4


class _InPlace(Function):
    """Saves its own output. The deviation is an output too, for second derivatives go through it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        found: list[Moments],
        slope: float,
        by_kernel: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.slope = slope
        ctx.mark_dirty(x)
        ctx.set_materialize_grads(False)
        ctx.kept = None
        if by_kernel:
            keep: list[Tensor] = []
            ctx.how = How(eps, None if slope == 1 else "leaky_relu", slope, keep=keep)
            _, ctx.kept = run_fused(x, weight, bias, ctx.how, in_place=True)
            found.append(moments_of_saved(keep[0], x.numel() // x.shape[1]))
            rstd = keep[0][RSTD].clone()
            ctx.save_for_backward(x, weight, bias, rstd)
            return x, rstd
        moments = moments_of(x)
        found.append(moments)
        if x.dtype != moments.mean.dtype:
            weight, bias = (None if p is None else p.to(moments.mean.dtype) for p in (weight, bias))
        rstd = (moments.variance() + eps).rsqrt()
        z = x.to(rstd.dtype)
        z.sub_(channelwise(moments.mean, x)).sub_(channelwise(moments.low, x))
        scale = channelwise(rstd if weight is None else rstd * weight, x)
        if bias is None:
            z.mul_(scale)
        else:
            torch.addcmul(channelwise(bias, x), z, scale, out=z)  # one rounding less than in two steps
        if slope != 1:
            torch.nn.functional.leaky_relu_(z, slope)
        if z is not x:
            x.copy_(z)
        ctx.save_for_backward(x, weight, bias, rstd)
        return x, rstd

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, g_rstd: Tensor | None) -> tuple[Any, ...]:
        z, weight, bias, rstd = ctx.saved_tensors
        if ctx.kept is not None and g is not None and g_rstd is None and not must_be_written_out(z, g):
            wanted = ctx.needs_input_grad
            own = is_sole_owner(g)
            by_kernel = gradients(g, z, weight, bias, ctx.kept, ctx.how, wanted, own, True)
            if by_kernel is not None:
                return *by_kernel, *_NONE
        types = (z.dtype, None if weight is None else weight.dtype, None if bias is None else bias.dtype)
        weight, bias = (None if p is None else p.to(rstd.dtype) for p in (weight, bias))
        y = z.to(rstd.dtype)
        g_y = None if g is None else g.to(rstd.dtype)
        if ctx.slope != 1:
            negative = y < 0
            y = torch.where(negative, y / ctx.slope, y)
            g_y = None if g_y is None else torch.where(negative, g_y * ctx.slope, g_y)
        xhat = y if bias is None else y - channelwise(bias, y)
        xhat = xhat if weight is None else xhat / channelwise(weight, xhat)
        found = backward_of_xhat(g_y, None, g_rstd, xhat, weight, rstd)
        wanted = ctx.needs_input_grad[:3]
        return *(
            part.to(dtype) if want and part is not None and dtype is not None else None
            for part, dtype, want in zip(found, types, wanted, strict=True)
        ), *_NONE


def batch_norm_in_place(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, slope: float = 1.0
) -> tuple[Tensor, Moments]:
    """Normalize by the statistics of the batch, apply leaky ReLU, and write the result over the input.

    The input is left alone, and the memory used, where the output cannot be inverted (see `can_be_inverted`), where
    no gradient is wanted, under the compiler (which plans memory by itself), torch.func and forward derivatives, and
    where it must not be overwritten: a leaf that wants a gradient, or a view.

    Args:
        x: Values ``(N, C, *)``; the operation before must not need them in its backward.
        weight: Gain of each channel ``(C,)``, or None for 1.
        bias: Shift of each channel ``(C,)``, or None for 0.
        eps: Added to the variance.
        slope: Of leaky ReLU below 0, above 0 itself; 1 for no activation.

    Returns:
        The output, which is ``x`` where it was overwritten; and the moments of the batch ``(C,)``.

    Raises:
        ShapeError: ``weight`` or ``bias`` does not have one value a channel.
    """
    check_rows(x, ("weight", "bias"), (weight, bias))
    alone = (
        not torch.is_grad_enabled()
        or wants_written_out()
        or forward_ad._current_level >= 0
        or x._is_view()
        or not x.requires_grad
        or x.is_leaf
        or not can_be_inverted(weight, bias)
    )
    if alone:
        y, moments = way_of(x, weight, bias, moments=True).normalize(x, weight, bias, eps)
        return (y if slope == 1 else torch.nn.functional.leaky_relu(y, slope)), moments
    found: list[Moments] = []
    by_kernel = x.is_cpu and not why_no_kernel(x, weight, bias) and plan(x) is not None
    y = _InPlace.apply(x, weight, bias, eps, found, slope, by_kernel)[0]
    return y, found[0]
