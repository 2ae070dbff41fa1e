"""Batch normalization of a tensor ``(N, C, *)``: statistics per channel, of this batch or given."""

import torch
import torch.nn.functional as F
from torch import Tensor

from normscope._errors import UsageError
from normscope.ops.activation import activate
from normscope.ops.moments import Moments, merge, merge_all
from normscope.ops.normalize import normalize
from normscope.ops.sets import BATCH, Masked, Renorm, StatisticsSet, ghost
from normscope.ops.shapes import ShapeError, check_rows
from normscope.ops.standardization import affine
from normscope.ops.statistics import channelwise, wide
from normscope.ops.track import count_batch, track
from normscope.ops.ways.choose import plan_at_once
from normscope.ops.ways.kernel import fused_at_once
from normscope.ops.ways.of import way_of

__all__ = ["ShapeError", "batch_norm", "batch_norm_given", "batch_renorm", "check_batch_norm", "ghost_batch_norm"]

_NAMES = ("weight", "bias", "running_mean", "running_var")


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
    over: StatisticsSet = BATCH,
    activation: str | None = None,
    negative_slope: float = 0.01,
    num_batches_tracked: Tensor | None = None,
) -> Tensor:
    """Normalize each channel by the statistics of this batch, or by given ones; and activate.

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
        over: The set that the statistics come from in training: this batch, its valid part, those of all processes.
        activation: ``"relu"``, ``"leaky_relu"`` or None, of the scaled and shifted values; part of the kernel.
        negative_slope: Of leaky ReLU.
        num_batches_tracked: Count of batches ``()``, int64: raised by one in training; or None.

    Returns:
        The normalized values in the type and shape of ``x``; zero for elements outside the set.

    Raises:
        ShapeError: ``x`` has no channel axis, a parameter does not have one value a channel, there is one value a
            channel to take statistics over, or running statistics are wanted and missing.
    """
    if training and over is BATCH:
        plan = plan_at_once(x, weight, bias, running_mean, running_var, num_batches_tracked)
        if plan is not None:
            seen = num_batches_tracked
            moved = None if running_mean is None or running_var is None else (running_mean, running_var, seen)
            if moved is not None or seen is None:
                return fused_at_once(plan, x, weight, bias, eps, activation, negative_slope, moved, momentum)
    if x.ndim == 1 and x.numel() == 0:  # nothing at all, which torch lets pass
        return x.clone()
    check_batch_norm(x, weight, bias, running_mean, running_var, training, over)
    if not training:
        assert running_mean is not None
        assert running_var is not None
        y = over.keep(batch_norm_given(x, running_mean, running_var, weight, bias, eps=eps))
        return activate(y, activation, negative_slope)
    if over is BATCH:
        if x.numel() == 0:  # nothing to take statistics of: the running ones stay as they are
            count_batch(num_batches_tracked)
            return affine(x, weight, bias).to(x.dtype)
        if (running_mean is None) == (running_var is None):
            running = None if running_mean is None or running_var is None else (running_mean, running_var)
            seen = num_batches_tracked
            way = way_of(x, weight, bias, running)
            return way.batch_norm(x, weight, bias, eps, activation, negative_slope, running, momentum, seen)
    y, moments = normalize(x, weight, bias, eps, over)
    track(running_mean, running_var, moments.mean + moments.low, moments.variance(unbiased=True), momentum)
    count_batch(num_batches_tracked)
    return activate(y, activation, negative_slope)


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
    if not torch.is_grad_enabled() and torch._C._get_tracing_state() is None:
        # One pass instead of two. Its gradient has no forward derivative, so it is for where there is no gradient. A
        # trace may be run with gradients or without, and torch checks it without: it has the other way always.
        y = F.batch_norm(d, torch.zeros_like(mean, dtype=dtype), var.to(dtype), weight, bias, False, 0.0, eps)
        return y.to(x.dtype)
    scale = (var.to(dtype) + eps).rsqrt()
    return affine(d, scale if weight is None else scale * weight, bias).to(x.dtype)


def ghost_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    group_size: int,
    eps: float = 1e-5,
    mask: Tensor | None = None,
) -> tuple[Tensor, Moments]:
    """Normalize groups of consecutive samples, each by its own statistics: Hoffer et al. (2017), algorithm 1.

    Args:
        x: Values ``(N, C, *)``.
        weight: Gain of each channel ``(C,)``, or None for 1.
        bias: Shift of each channel ``(C,)``, or None for 0.
        group_size: Samples of a group. The last group has the remaining samples, if they have more than one value a
            channel; else they join the group before it.
        eps: Added to the variances.
        mask: True for values that count, ``(N, *)``, ``(N, 1, *)`` or ``(N, C, *)``; or None for all.

    Returns:
        The normalized values in the type of ``x``; and the moments ``(C,)`` of the whole batch, which those of the
        groups merge to exactly, whatever their sizes.

    Raises:
        UsageError: ``torch.jit.trace`` is recording.
    """
    if torch._C._get_tracing_state() is not None:
        raise UsageError(
            "torch.jit.trace would keep the number of ghost batches that the example has: trace in eval mode, or use "
            "torch.compile or torch.export"
        )
    parts = ghost.group_sizes(x.shape[0], group_size, x[0, 0].numel())
    masks = None if mask is None else ghost.split(Masked(mask, x).mask, parts)
    outputs: list[Tensor] = []
    whole: Moments | None = None
    for at, (part, (groups, _)) in enumerate(zip(ghost.split(x, parts), parts, strict=True)):
        folded = ghost.fold(part, groups)
        over = BATCH if masks is None else Masked(ghost.fold_mask(masks[at], groups, x.shape[1]), folded)
        y, m = normalize(folded, ghost.repeat(weight, groups), ghost.repeat(bias, groups), eps, over)
        outputs.append(ghost.unfold(y, groups))
        count = m.count.view(groups, -1) if isinstance(m.count, Tensor) else m.count
        pooled = merge_all(Moments(count, *(v.view(groups, -1) for v in (m.mean, m.low, m.m2))))
        whole = pooled if whole is None else merge(whole, pooled)
    assert whole is not None
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return y, whole


def batch_renorm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    step: Tensor,
    *,
    renorm: Renorm,
    eps: float = 1e-5,
    over: StatisticsSet = BATCH,
) -> tuple[Tensor, Moments]:
    """Normalize by the statistics of a set, corrected toward the running ones: Ioffe (2017), algorithm 1.

    Args:
        x: Values ``(N, C, *)``.
        weight: Gain of each channel ``(C,)``, or None for 1.
        bias: Shift of each channel ``(C,)``, or None for 0.
        running_mean: Running mean ``(C,)``, a constant here.
        running_var: Running variance ``(C,)``, likewise.
        step: How many updates the running statistics have had, a whole number ``()``.
        renorm: How far to correct at which step.
        eps: Added to the variances.
        over: The set that the statistics come from.

    Returns:
        The normalized values in the type of ``x``; and the moments of the set ``(C,)``.
    """
    xhat, moments = normalize(x.to(wide(x.dtype)), None, None, eps, over)
    r, d = renorm.correction(moments, running_mean, running_var, step, eps)
    if weight is not None:
        r, d = weight * r, weight * d
    y = affine(xhat, r, d if bias is None else d + bias)
    return over.keep(y).to(x.dtype), moments


def check_batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    over: StatisticsSet = BATCH,
    refuse_one: bool = True,
) -> None:
    """Refuse tensors that do not fit together, and one value a channel if so wanted; see ``batch_norm``."""
    if x.ndim < 2:
        raise ShapeError(f"expected an input (N, C, *) with a channel axis, got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ShapeError(f"expected an input of a floating type, got {x.dtype}: convert it with .float()")
    check_rows(x, _NAMES, (weight, bias, running_mean, running_var))
    if training and refuse_one and x.numel() == x.shape[1] and over is BATCH:
        raise ShapeError(
            f"Expected more than 1 value per channel when training, got input size {x.shape}: "
            "one value has no variance; use a larger batch, drop the last incomplete one, or call .eval()"
        )
    if not training and (running_mean is None or running_var is None):
        raise ShapeError("running_mean and running_var are needed outside training: give them, or pass training=True")
