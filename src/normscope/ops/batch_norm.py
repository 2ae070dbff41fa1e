"""Batch normalization of a tensor ``(N, C, *)``: statistics per channel, of this batch or given."""

import torch
import torch.nn.functional as F
from torch import Tensor

from normscope._errors import UsageError
from normscope.ops.standardize import affine, standardize_affine
from normscope.ops.statistics import channelwise, wide
from normscope.ops.track import track

_NAMES = ("weight", "bias", "running_mean", "running_var")


class ShapeError(UsageError, ValueError):
    """A tensor has a shape that cannot be normalized; a ValueError too, as torch raises it."""


def batch_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
) -> Tensor:
    """Normalize each channel by the statistics of this batch, or by given ones.

    The numbers of ``torch.nn.functional.batch_norm``, to rounding; also where a large mean costs torch its digits.
    Ioffe & Szegedy (2015), algorithms 1 and 2.

    Args:
        x: Values ``(N, C, *)`` of any floating type and layout; statistics are float32 or wider.
        weight: Gain of each channel ``(C,)``, or None for 1.
        bias: Shift of each channel ``(C,)``, or None for 0.
        eps: Added to the variance, in squared units of ``x``.
        running_mean: Mean of each channel ``(C,)``: moved in place in training, used outside it.
        running_var: Variance of each channel ``(C,)``: likewise.
        training: Normalize by the statistics of this batch; else by the running ones.
        momentum: Share of this batch in the running statistics.

    Returns:
        The normalized values in the type and shape of ``x``.

    Raises:
        ShapeError: ``x`` has no channel axis, a parameter does not have one value a channel, there is one value a
            channel to take statistics over, or running statistics are wanted and missing.
    """
    _check(x, weight, bias, running_mean, running_var, training)
    if x.numel() == 0:  # nothing to take statistics of: the running ones stay as they are
        return affine(x, weight, bias).to(x.dtype)
    if not training:
        assert running_mean is not None
        assert running_var is not None
        return batch_norm_given(x, running_mean, running_var, weight, bias, eps=eps)
    y, shift, low, _, var = standardize_affine(x, weight, bias, eps)
    if running_mean is not None or running_var is not None:
        track(running_mean, running_var, shift + low.detach(), var.detach(), momentum)
    return y


def batch_norm_given(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """Normalize each channel by a given mean and variance: affine in ``x``.

    The mean is taken off first: folded into the bias, as torch has it, a large mean costs digits.

    Args:
        x: Values ``(N, C, *)``.
        mean: Mean of each channel ``(C,)``.
        var: Variance of each channel ``(C,)``, in squared units of ``x``.
        weight: Gain of each channel ``(C,)``, or None for 1.
        bias: Shift of each channel ``(C,)``, or None for 0.
        eps: Added to the variance.

    Returns:
        The normalized values in the type and shape of ``x``.
    """
    dtype = wide(x.dtype)
    d = x - channelwise(mean.to(dtype), x)
    if x.dtype != dtype:
        weight, bias = (None if p is None else p.to(dtype) for p in (weight, bias))
    if not torch.is_grad_enabled():
        # One pass instead of two. Its gradient has no forward derivative, so it is for where there is no gradient.
        y = F.batch_norm(d, torch.zeros_like(mean, dtype=dtype), var.to(dtype), weight, bias, False, 0.0, eps)
        return y.to(x.dtype)
    scale = (var.to(dtype) + eps).rsqrt()
    return affine(d, scale if weight is None else scale * weight, bias).to(x.dtype)


def _check(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
) -> None:
    if x.ndim < 2:
        raise ShapeError(f"expected an input (N, C, *) with a channel axis, got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ShapeError(f"expected an input of a floating type, got {x.dtype}: convert it with .float()")
    channels = x.shape[1]
    for name, values in zip(_NAMES, (weight, bias, running_mean, running_var), strict=True):
        if values is not None and (values.ndim != 1 or values.shape[0] != channels):
            raise ShapeError(
                f"{name} should have one value for each of the {channels} channels of an input of shape "
                f"{tuple(x.shape)}, got shape {tuple(values.shape)}"
            )
    if training and x.numel() == channels:
        raise ShapeError(
            f"Expected more than 1 value per channel when training, got input size {x.shape}: "
            "one value has no variance; use a larger batch, drop the last incomplete one, or call .eval()"
        )
    if not training and (running_mean is None or running_var is None):
        raise ShapeError("running_mean and running_var are needed outside training: give them, or pass training=True")
