"""Norms on the CPU, forward and backward, from one C++ source built for several instruction sets.

Batch norm in training with its activation; layer, RMS, group and instance norm as rows.

The modules read tensors by DLPack's exchange of C functions, or by the attributes that Python sees, and are built
without torch. Where none could be built, or none runs on this machine, `why_not` says so and the callers go another
way.
"""

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from normscope.kernels.cpu import hints

#: Rows of what a forward saves for its backward, ``(6, C)`` in float32 or, for float64 input, float64.
MEAN, LOW, RSTD, SCALE, OFFSET, VAR = range(6)
ACTIVATIONS = {None: 0, "relu": 1, "leaky_relu": 2}

#: Types of values and of rows of parameters, in the order of the kernel's numbers for them.
TYPES = (torch.float32, torch.bfloat16, torch.float64)
_BUILDS = ("_avx512", "_avx2", "_baseline")
#: Bytes of the first input before which the kernel is calibrated: what a smaller one takes is soon over.
LARGE = 4 << 20


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    """Return the best build that this machine runs, and why there is none."""
    module, reason = _best()
    if module is not None:
        _Memory.choose(module)
    return module, reason


class _Memory:
    """How the kernel goes about memory, and why: by rules, and from the first large input on as it was calibrated."""

    choice: hints.Choice | None = None

    @classmethod
    def choose(cls, module: ModuleType) -> None:
        """Begin with the rules; calibrate before the first large input."""
        cls.choice = hints.by_rules(hints.caches(), hints.vendor())
        module.set_hints(*cls.choice.hints)
        module.before_first_large(functools.partial(cls.settle, module), LARGE)

    @classmethod
    def settle(cls, module: ModuleType) -> None:
        """Calibrate."""
        if cls.choice is not None:
            cls.choice = hints.settle(module, cls.choice)
            module.set_hints(*cls.choice.hints)


def memory() -> hints.Choice | None:
    """Return how memory is gone about, and why; None without a kernel."""
    return _Memory.choice if not why_not() else None


def build(name: str) -> ModuleType:
    """Import the build for one instruction set.

    Args:
        name: ``"_baseline"``, ``"_avx2"`` or ``"_avx512"``.

    Raises:
        ImportError: It was not built, or from older sources, or does not load here.
    """
    module = importlib.import_module(f"{__name__}.{name}")
    # What it tells tensors by, and makes them with; not every torch has the exchange.
    exchange = getattr(Tensor, "__dlpack_c_exchange_api__", None)
    try:
        module.learn(Tensor, torch.nn.Parameter, torch.strided, torch.empty_like, *TYPES, torch.int64, exchange)
    except (AttributeError, TypeError) as error:
        raise ImportError(f"{module.__name__} was built from older sources: install normscope again") from error
    return module


def _best() -> tuple[ModuleType | None, str]:
    found: dict[str, ModuleType] = {}
    try:
        found["_baseline"] = build("_baseline")
    except ImportError as error:
        return None, f"the extension was not built, or does not load: {error}"
    runs = found["_baseline"].supports()
    for name in _BUILDS[:-1]:
        if runs[name]:
            try:
                return build(name), ""
            except ImportError:  # a compiler without this instruction set: the next one does
                continue
    return found["_baseline"], ""


@functools.cache
def why_not() -> str:
    """Say why these kernels cannot run at all; empty where they can."""
    return _load()[1]


def about() -> dict[str, Any]:
    """Return the instruction set, whether torch's threads are shared, and the bytes of a core's cache.

    Raises:
        ImportError: There is no kernel; see `why_not`.
    """
    module, reason = _load()
    if module is None:
        raise ImportError(reason)
    return dict(module.about())


def plan(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    seen: Tensor | None = None,
) -> Any:
    """Return a plan of one normalization; None where a tensor cannot be taken as it is.

    A plan is used once, at once: ``forward(x, in_place, saved, threads, activation, slope, eps, share)`` returns the
    output, laid out like ``x`` or ``x`` itself, moves the running statistics and raises the count. What the backward
    needs stays in the plan, or goes to ``saved`` ``(6, C)`` if that is a tensor. ``count`` is the values a channel.

    Then ``backward(g, x, weight, bias, *wanted, over, threads, from_output)`` returns the gradients of ``x``,
    ``weight`` and ``bias``, None for what is not ``wanted`` (three truth values); that of ``x`` with ``over`` in the
    memory of ``g``. ``x`` is the input, or with ``from_output`` the output (no activation, or leaky ReLU). It returns
    None, and does nothing, where ``g`` is not laid out like ``x``.

    Args:
        x: Values ``(N, C, *)``: float32, bfloat16 or float64, dense with channels apart or side by side.
        weight: Gain ``(C,)``, dense, of any of the types; or None for 1.
        bias: Shift ``(C,)``, likewise; or None for 0.
        running_mean: ``(C,)``, moved in place; or None.
        running_var: ``(C,)``, likewise, together with the mean.
        seen: Count of batches ``()`` in int64, that goes up by one; or None.
    """
    return _kernel().plan(x, weight, bias, running_mean, running_var, seen)


@functools.cache
def takes_rows() -> bool:
    """Say whether there is a kernel for rows: one that runs here, and was built from sources that have it."""
    return not why_not() and hasattr(_kernel(), "rows_forward")


def rows_forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rows: int,
    groups: int,
    span: int,
    centred: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Standardize rows, then scale and shift: layer, RMS, group and instance norm.

    The kernel goes by addresses, so whoever calls answers for sizes.

    Args:
        x: Values of one of ``TYPES``, dense in the order of their axes.
        weight: Dense gains of any of the types, ``groups`` times as many as a row has; or None for 1.
        bias: Shifts, likewise; or None for 0.
        rows: Number of rows that ``x`` is divided into.
        groups: Number of rows that differ in their gains; then the gains begin anew.
        span: Number of neighbouring values of a row that share a gain.
        centred: Whether the mean is taken off.
        eps: Added to the variance or mean square.

    Returns:
        The output like ``x``, and what the backward needs ``(6, rows)``.
    """
    y = torch.empty_like(x)
    saved = x.new_empty((6, rows), dtype=x.dtype if x.dtype is torch.float64 else torch.float32)
    threads = torch.get_num_threads()
    size = x.numel() // rows
    _kernel().rows_forward(x, rows, size, groups, span, centred, eps, threads, y, saved, weight, bias)
    return y, saved


def rows_backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    rows: int,
    groups: int,
    span: int,
    centred: bool,
    eps: float,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of ``x``, ``weight`` and ``bias``, None for what is not wanted.

    Args:
        g: Cotangent of the output, of any strides.
        x: As in the forward.
        weight: As in the forward.
        bias: As in the forward.
        saved: From the forward.
        rows: As in the forward.
        groups: As in the forward.
        span: As in the forward.
        centred: As in the forward.
        eps: As in the forward.
        wanted: Three truth values.
    """
    g = g.to(x.dtype).resolve_neg().contiguous()
    given = (x, weight, bias)
    into = [torch.empty_like(p) if p is not None and want else None for p, want in zip(given, wanted, strict=True)]
    threads, size = torch.get_num_threads(), x.numel() // rows
    _kernel().rows_backward(
        x, rows, size, groups, span, centred, eps, threads, g, into[0], saved, weight, into[1], into[2]
    )
    return into[0], into[1], into[2]


def empty_saved(x: Tensor) -> Tensor:
    """Return memory ``(6, C)`` for what a forward of ``x`` saves."""
    return x.new_empty((6, x.shape[1]), dtype=x.dtype if x.dtype is torch.float64 else torch.float32)


@functools.cache
def _kernel() -> Any:
    module = _load()[0]
    assert module is not None
    return module
