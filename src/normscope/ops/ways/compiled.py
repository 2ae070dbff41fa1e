r"""Batch norm over a batch and its activation as the compiler should see it: forward and backward in torch operations.

Left to differentiate the forward by itself, inductor stores the mask of the activation and makes several passes: twice
to four times torch's time in eager mode on a CPU. Given a backward that takes the mask from the input again, it fuses
that into two passes over memory each way.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from normscope.ops.moments import Moments
from normscope.ops.standardization import affine, backward
from normscope.ops.statistics import channel_axes, channelwise, wide


class _Compiled(Function):
    """A first derivative alone, which is all that a compiled backward can have; and no rule for tangents."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        activation: str | None,
        slope: float,
    ) -> tuple[Tensor, ...]:
        dtype = wide(x.dtype)
        # A constant near the mean, as everywhere; here a first value, which costs no pass. What is left is summed by
        # Welford's rule, for which it need not be very near.
        shift = x.flatten(2)[0, :, 0] if x.ndim > 2 else x[0]
        shift = shift.to(dtype)
        d = x.to(dtype) - channelwise(shift, x)
        var, mean = torch.var_mean(d, channel_axes(x), correction=0)
        rstd = (var + eps).rsqrt()
        ctx.activation, ctx.slope = activation, slope
        ctx.save_for_backward(x, weight, bias, shift, mean, rstd)
        ctx.mark_non_differentiable(shift, mean, var)
        z = _argument(d, weight, bias, mean, rstd)
        if activation is not None:
            z = z.relu() if activation == "relu" else torch.where(z > 0, z, z * slope)
        return z.to(x.dtype), shift, mean, var

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Any, ...]:
        x, weight, bias, shift, mean, rstd = ctx.saved_tensors
        d, g = x.to(shift.dtype) - channelwise(shift, x), g.to(shift.dtype)
        if ctx.activation is not None:
            z = _argument(d, weight, bias, mean, rstd)
            g = torch.where(z <= 0, 0.0, g) if ctx.activation == "relu" else torch.where(z > 0, g, g * ctx.slope)
        w = None if weight is None else weight.to(shift.dtype)
        found = backward(g, None, None, d, w, mean, rstd)
        like = zip(found, (x, weight, bias), strict=True)
        return *(None if of is None or part is None else part.to(of.dtype) for part, of in like), None, None, None


def _argument(d: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor) -> Tensor:
    weight, bias = (None if p is None else p.to(d.dtype) for p in (weight, bias))
    scale = rstd if weight is None else rstd * weight
    return affine(d - channelwise(mean, d), scale, bias)


def compiled_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, activation: str | None, slope: float
) -> tuple[Tensor, Moments]:
    """Normalize by the statistics of the batch, scale, shift and activate, for the compiler to fuse.

    Args:
        x: Values ``(N, C, *)``.
        weight: Gain ``(C,)`` or None for 1.
        bias: Shift ``(C,)`` or None for 0.
        eps: Added to the variance.
        activation: ``"relu"``, ``"leaky_relu"`` or None.
        slope: Of leaky ReLU.

    Returns:
        The output in the type of ``x``; and the moments ``(C,)``, constants to autograd.
    """
    y, shift, mean, var = _Compiled.apply(x, weight, bias, eps, activation, slope)
    n = x.numel() // x.shape[1]
    return y, Moments(n, shift, mean, var * n)
