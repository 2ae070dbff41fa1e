r"""Batch norm over a batch and its activation in one kernel, with rules for every order of derivative.

$$y = \phi(\gamma \hat x + \beta)$$

The kernel's backward rebuilds the activation's argument from the input by the forward's own operations, so the mask is
the forward's bit for bit and none is stored. Where a derivative is itself differentiated, the rules are those of
`normscope.ops.standardization`, in torch operations.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.autograd.graph import increment_version

from normscope.kernels import cpu, gpu
from normscope.ops.moments import Moments
from normscope.ops.standardization import affine, backward, tangent
from normscope.ops.statistics import channel_axes, channelwise, shifted
from normscope.ops.ways.choose import differentiated
from normscope.ops.ways.ownership import is_sole_owner


class How(NamedTuple):
    """What a fused batch norm does beside its tensors; one object, since every argument of a Function costs time.

    Attributes:
        eps: Added to the variance.
        activation: ``"relu"``, ``"leaky_relu"`` or None.
        slope: Of leaky ReLU.
        running: Mean and variance ``(C,)``, moved in place, and the count of batches or None; or None for all.
        share: Of this batch in them.
        keep: A list that gets the saved tensor of the forward too; or None.
        plan: Of the CPU's kernel for these very tensors, if there is one already.
    """

    eps: float
    activation: str | None = None
    slope: float = 0.0
    running: tuple[Tensor, Tensor, Tensor | None] | None = None
    share: float = 0.0
    keep: list[Tensor] | None = None
    plan: Any = None


_how = functools.partial(tuple.__new__, How)  # of a tuple of all fields, in a third of the time


class _Fused(Function):
    """One output. What the backward needs beside the input is six numbers a channel, which the kernel keeps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, how: How) -> Tensor:
        y, ctx.kept = run_fused(x, weight, bias, how)
        ctx.how = how
        ctx.save_for_backward(x, weight, bias)
        if forward_ad._current_level >= 0:  # saving costs time, and is for forward derivatives alone
            ctx.save_for_forward(x, weight, bias)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, weight, bias = ctx.saved_tensors
        wanted, how = ctx.needs_input_grad, ctx.how
        if not must_be_written_out(x, g):
            own = is_sole_owner(g)
            by_kernel = gradients(g, x, weight, bias, ctx.kept, how, wanted, own)
            if by_kernel is not None:
                return *by_kernel, None
        d, w, _, z, mean, rstd = _written_out(how, x, weight, bias)
        found = backward(_through_activation(g.to(d.dtype), z, how), None, None, d, w, mean, rstd)
        of = zip(found, (x, weight, bias), wanted, strict=False)
        return *(
            None if part is None or like is None or not want else part.to(like.dtype) for part, like, want in of
        ), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        x, weight, bias = ctx.saved_tensors
        d, w, _, z, mean, rstd = _written_out(ctx.how, x, weight, bias)
        t, t_weight, t_bias = (None if t is None else t.to(d.dtype) for t in tangents[:3])
        return _through_activation(tangent(t, t_weight, t_bias, d, w, mean, rstd)[0], z, ctx.how).to(x.dtype)


# The end of Function.apply. Its beginning is for torch.func, which does not come here, and costs microseconds.
_apply = super(Function, _Fused).apply


def must_be_written_out(x: Tensor, g: Tensor) -> bool:
    """Say whether a backward that is running is differentiated, batched or recorded, so that no kernel may do it."""
    return (
        differentiated(x, g)
        or torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or type(g) is not Tensor
        or torch._C._functorch.is_legacy_batchedtensor(g)  # what is_grads_batched uses, no transform to torch.func
    )


def _written_out(how: How, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Any, ...]:
    """Return, as functions of the input: it less a constant, weight and bias in its type, z, mean and deviation."""
    d, _ = shifted(x)
    w, b = (None if p is None else p.to(d.dtype) for p in (weight, bias))
    mean = d.mean(channel_axes(d))
    centred = d - channelwise(mean, d)
    rstd = (centred.square().mean(channel_axes(d)) + how.eps).rsqrt()
    z = None if how.activation is None else affine(centred * channelwise(rstd, d), w, b)
    return d, w, b, z, mean, rstd


def _through_activation(t: Tensor, z: Tensor | None, how: How) -> Tensor:
    """Multiply by the activation's derivative, which is piecewise constant: its own derivative is zero."""
    if z is None:
        return t
    if how.activation == "relu":
        return torch.where(z.detach() <= 0, torch.zeros((), dtype=t.dtype), t)
    return torch.where(z.detach() > 0, t, t * how.slope)


def run_fused(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, how: How, *, in_place: bool = False
) -> tuple[Tensor, Any]:
    """Run the kernel's forward, outside autograd.

    Args:
        x: Values ``(N, C, *)``.
        weight: Gain ``(C,)`` or None.
        bias: Shift ``(C,)`` or None.
        how: The rest.
        in_place: Whether the output goes over ``x``, which is dense.

    Returns:
        The output, and the plan or saved tensors for `gradients`.
    """
    eps, activation, slope, running, share, keep, plan = how
    if x.is_cuda:
        moved = None if running is None else (running[0], running[1], share)
        y, kept = gpu.forward(x, weight, bias, eps, cpu.ACTIVATIONS[activation], slope, None, moved)
        if running is not None:
            if running[2] is not None:
                running[2].add_(1)
            increment_version(running[:2])
        return y, kept
    if plan is None:
        plan = _planned(x, weight, bias, running)
        if plan is None:
            x = x.contiguous()
            plan = _planned(x, weight, bias, running)
    saved = None if keep is None else cpu.empty_saved(x)
    threads = torch.get_num_threads()
    y = plan.forward(x, in_place, saved, threads, cpu.ACTIVATIONS[activation], slope, eps, share)
    if running is not None:  # as any other in-place operation does; the kernel does not
        mean, var, seen = running
        increment_version((mean, var) if seen is None else (mean, var, seen))
    if keep is not None and saved is not None:
        keep.append(saved)
    return y, plan


def _planned(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running: tuple[Tensor, Tensor, Tensor | None] | None
) -> Any:
    return cpu.plan(x, weight, bias) if running is None else cpu.plan(x, weight, bias, *running)


def gradients(
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    kept: Any,
    how: How,
    wanted: Sequence[bool],
    own: bool = False,
    from_output: bool = False,
) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None:
    """Return the kernel's gradients of ``x``, ``weight`` and ``bias``; None for what is not wanted.

    None in place of all where it cannot take them: a hook on saved tensors may bring back others than were saved.

    Args:
        g: Cotangent of the output, of any strides.
        x: The input ``(N, C, *)``; with ``from_output``, the output.
        weight: Gain ``(C,)`` or None.
        bias: Shift ``(C,)`` or None.
        kept: What `run_fused` returned.
        how: As in the forward.
        wanted: Which gradients: at least three truth values.
        own: Whether the gradient of ``x`` may be written over ``g``, which nobody else will read.
        from_output: Whether ``x`` is the output.
    """
    if x.is_cuda:
        asked = (wanted[0], wanted[1], wanted[2], False)
        activation = cpu.ACTIVATIONS[how.activation]
        g_x, g_weight, g_bias, _ = gpu.backward(g, x, weight, bias, kept, activation, how.slope, None, asked)
        return g_x, _like(g_weight, weight), _like(g_bias, bias)
    threads = torch.get_num_threads()
    found = kept.backward(g, x, weight, bias, wanted[0], wanted[1], wanted[2], own, threads, from_output)
    if found is None:
        # Of other strides, or expanded, or the sign still to be changed: once more, on a copy laid out like the input.
        x = x if cpu.plan(x) else x.contiguous()
        g = torch.empty_like(x).copy_(g)
        found = kept.backward(g, x, weight, bias, *wanted[:3], True, threads, from_output)
    return found


def _like(values: Tensor | None, of: Tensor | None) -> Tensor | None:
    return None if values is None or of is None else values.to(of.dtype)


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

    For tensors to which `normscope.ops.ways.choose.why_no_kernel` has no objection.

    Args:
        x: Values ``(N, C, *)``.
        weight: Gain ``(C,)`` or None for 1.
        bias: Shift ``(C,)`` or None for 0.
        eps: Added to the variance.
        activation: ``"relu"``, ``"leaky_relu"`` or None.
        slope: Of leaky ReLU.
        running: Mean and variance ``(C,)``, moved in place; or None.
        share: Of this batch in them.
        seen: Count of the batches in them, int64 ``()``, raised by one; or None.

    Returns:
        The output in type and layout of ``x``.
    """
    if running is None or (
        seen is not None and not (type(seen) is Tensor and seen.is_cpu and seen.dtype is torch.int64)
    ):
        moved = None if running is None else (running[0], running[1], None)
        y = _apply(x, weight, bias, How(eps, activation, slope, moved, share))
        if seen is not None:
            seen.add_(1)
        return y
    return _apply(x, weight, bias, How(eps, activation, slope, (running[0], running[1], seen), share))


def fused_at_once(
    plan: Any,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str | None,
    slope: float,
    moved: tuple[Tensor, Tensor, Tensor | None] | None,
    share: float,
) -> Tensor:
    """Do what `batch_norm` does, by a plan that was made for these tensors.

    Args:
        plan: Of the CPU's kernel.
        x: Values ``(N, C, *)``.
        weight: Gain ``(C,)`` or None.
        bias: Shift ``(C,)`` or None.
        eps: Added to the variance.
        activation: ``"relu"``, ``"leaky_relu"`` or None.
        slope: Of leaky ReLU.
        moved: Running mean, running variance and count of batches or None, moved in place; or None for all.
        share: Of this batch in the running statistics.
    """
    return _apply(x, weight, bias, _how((eps, activation, slope, moved, share, None, plan)))


def normalize(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Moments]:
    """Do what ``normalize`` does over the batch, by the kernel: the output, and the moments ``(C,)`` of the batch."""
    keep: list[Tensor] = []
    y = _apply(x, weight, bias, How(eps, keep=keep))
    return y, moments_of_saved(keep[0], x.numel() // x.shape[1])


def moments_of_saved(saved: Tensor, count: int) -> Moments:
    """Return the moments that a forward saved."""
    return Moments(count, saved[cpu.MEAN], saved[cpu.LOW], saved[cpu.VAR] * count)
