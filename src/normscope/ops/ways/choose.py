"""Which way batch norm over a batch is computed: by a fused kernel, by torch's own, or written out."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from normscope._errors import UsageError
from normscope.kernels import cpu, gpu

Way = Literal["written_out", "torch", "kernel"]

_asked: ContextVar[Way | None] = ContextVar("normscope.ops.using", default=None)
_PLAIN = (Tensor, Parameter)
_TYPES = cpu.TYPES
_COMPILED = "the compiler fuses the written-out forward and backward by itself"


class Explanation(NamedTuple):
    """Which way a batch norm of a tensor is computed, and why.

    Attributes:
        way: ``"kernel"``, ``"torch"`` or ``"written_out"``.
        reason: In words.
    """

    way: Way
    reason: str

    def __str__(self) -> str:
        """Return both on one line."""
        return f"{self.way}: {self.reason}"


@contextmanager
def using(way: Way) -> Iterator[None]:
    """Compute batch norms in one way, for comparisons and tests; in this thread and its context.

    Args:
        way: ``"kernel"`` for the fused kernel wherever there is one for the input, ``"torch"`` for torch's own kernels
            (on values that a constant near their mean was taken off), ``"written_out"`` for the formulas in torch
            operations, without fused kernels.

    Raises:
        UsageError: There is no such way, or no kernel runs on this machine.

    Example:
        >>> x = torch.randn(8, 3, 5, 5)
        >>> with using("written_out"):
        ...     explain(x).way
        'written_out'
    """
    if way not in ("written_out", "torch", "kernel"):
        raise UsageError(f"the ways are 'written_out', 'torch' and 'kernel': got {way!r}")
    if way == "kernel" and not torch.cuda.is_available() and (reason := cpu.why_not()):
        raise UsageError(f"no kernel runs on this machine: {reason}")
    token = _asked.set(way)
    try:
        yield
    finally:
        _asked.reset(token)


def is_written_out() -> bool:
    """Say whether the written-out forward must run: no Function, no kernel, nothing that looks at values.

    The compiler refuses a jvp of one's own, and fuses the forward by itself; torch.func differentiates and batches
    the forward rightly, where a jvp inside a jvp of any Function comes out as zero; ``torch.jit.trace`` records
    operations, of which a Function is none, and takes what is read from a value for a constant.
    """
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or torch._C._is_tracing()


def is_compiling_plainly() -> bool:
    """Say whether the compiler is tracing, and no transform of torch.func within what it traces."""
    return torch.compiler.is_compiling() and not torch._C._are_functorch_transforms_active()


def wants_written_out() -> bool:
    """Say whether the formulas are to run as they are written: they must, or it was asked for."""
    return is_written_out() or _asked.get() == "written_out"


def differentiated(x: Tensor, g: Tensor) -> bool:
    """Say whether a backward that is running is itself being differentiated."""
    if torch.is_grad_enabled():
        return True
    # The level is below 0 but for a few users of dual numbers, and looking at it is ten times cheaper.
    return forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(p).tangent is not None for p in (x, g))


def plan_at_once(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    seen: Tensor | None,
) -> Any:
    """Return the CPU kernel's plan of a batch norm; None where anything is in its way: then ask `why_no_kernel`.

    The same checks as `why_no_kernel` and `check_rows`, done in C++: on a small batch the checks in Python take three
    times as long as the kernel.

    Args:
        x: Values ``(N, C, *)``.
        weight: Gain ``(C,)`` or None.
        bias: Shift ``(C,)`` or None.
        running_mean: ``(C,)`` or None.
        running_var: ``(C,)`` or None, together with the mean.
        seen: Count of batches in int64 ``()``, or None.
    """
    if is_written_out() or cpu.why_not():
        return None
    asked = _asked.get()
    if asked is not None and asked != "kernel":
        return None
    if torch._C._len_torch_dispatch_stack():
        return None
    plan = cpu.plan(x, weight, bias, running_mean, running_var, seen)
    return plan if plan is not None and plan.count > 1 else None


def why_no_kernel(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, running: tuple[Tensor, Tensor] | None = None
) -> str:
    """Say why no kernel takes a batch norm; empty where one does. Cheap: it is asked at every call.

    Args:
        x: Values ``(N, C, *)``.
        weight: Gain ``(C,)`` or None.
        bias: Shift ``(C,)`` or None.
        running: Running mean and variance ``(C,)`` or None.
    """
    asked = _asked.get()
    if asked is not None and asked != "kernel":
        return "asked for by normscope.ops.using"
    if not x.is_cpu and (reason := _why_no_gpu_kernel(x, asked)):
        return reason
    if type(x) not in _PLAIN:
        return f"the input is a {type(x).__name__}, whose memory is not to be touched"
    if x.dtype not in _TYPES and x.is_cpu:
        return f"there is no kernel for {x.dtype}"
    if x.ndim < 2 or x.numel() == 0:
        return "there is nothing to take statistics of"
    if x.layout is not torch.strided or x.is_neg():
        return "the input is no plain strided tensor"
    if (
        (weight is not None and not _is_row(weight, x))
        or (bias is not None and not _is_row(bias, x))
        or (running is not None and not (_is_row(running[0], x) and _is_row(running[1], x)))
    ):
        return "weight, bias or running statistics are not dense rows of one number a channel on the input's device"
    if torch._C._len_torch_dispatch_stack() or torch._C._is_tracing():
        return "operations are being recorded, and a kernel would not be seen"
    return cpu.why_not() if x.is_cpu else ""


def rows_by_kernel(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> bool:
    """Say whether the CPU's kernel takes a layer, RMS, group or instance norm here and now.

    Args:
        x: Values, at least one, of any shape.
        weight: Gains or None; of the right shape.
        bias: Shifts or None; of the right shape.
    """
    return (
        not is_written_out()  # first: the compiler does not read what was asked for
        and _asked.get() in (None, "kernel")
        and _is_plain(x)
        and x.layout is torch.strided
        and (weight is None or (_is_plain(weight) and weight.is_contiguous()))
        and (bias is None or (_is_plain(bias) and bias.is_contiguous()))
        and not torch._C._len_torch_dispatch_stack()
        and cpu.takes_rows()
    )


def _is_plain(values: Tensor) -> bool:
    return type(values) in _PLAIN and values.is_cpu and values.dtype in _TYPES and not values.is_neg()


def _is_row(values: Tensor, x: Tensor) -> bool:
    # The kernel goes by addresses: a row of another length would be read past its end.
    return (
        type(values) in _PLAIN
        and values.shape == x.shape[1:2]
        and values.is_cpu == x.is_cpu
        and values.dtype in _TYPES
        and values.is_contiguous()
    )


def _why_no_gpu_kernel(x: Tensor, asked: Way | None) -> str:
    if not x.is_cuda:
        return f"there is no kernel for {x.device.type}"
    if asked is None:  # it is right under the interpreter, and nobody has timed it against cuDNN yet
        return "the GPU kernel runs when it is asked for, with normscope.ops.using('kernel'): it is not timed yet"
    if not gpu.takes(x):
        return f"there is no kernel for {x.dtype}"
    return gpu.why_not(x.device) or ""


def explain(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Explanation:
    """Say which way a batch norm of a tensor in training would take here and now, and why.

    Args:
        x: Values ``(N, C, *)``.
        weight: Gain ``(C,)`` or None.
        bias: Shift ``(C,)`` or None.

    Returns:
        The way and the reason; printed, one line.

    Example:
        >>> with using("torch"):
        ...     print(explain(torch.zeros(4, 2)))
        torch: asked for by normscope.ops.using
    """
    if torch.compiler.is_compiling():
        return Explanation("written_out", _COMPILED)
    if torch._C._are_functorch_transforms_active():
        return Explanation("written_out", "torch.func differentiates and batches the written-out forward")
    if torch._C._is_tracing():
        return Explanation("written_out", "torch.jit.trace records the written-out forward")
    if _asked.get() == "written_out":
        return Explanation("written_out", "asked for by normscope.ops.using")
    if reason := why_no_kernel(x, weight, bias):
        return Explanation("torch", reason)
    if not x.is_cpu:
        return Explanation("kernel", "Triton's, as asked for by normscope.ops.using")
    about = cpu.about()
    dense = "" if cpu.plan(x) else ", after a copy to dense memory"
    threads = torch.get_num_threads() if about["threads"] else 1
    words = f"{about['isa']}, {threads} {'thread' if threads == 1 else 'threads'} of torch's own{dense}"
    return Explanation("kernel", f"{words}; {cpu.memory()}")


def kernel_of_rows() -> str:
    """Return which build of the CPU's kernel computes layer, RMS, group and instance norm, or why none does."""
    return str(cpu.about()["isa"]) if cpu.takes_rows() else cpu.why_not() or "built from older sources"
