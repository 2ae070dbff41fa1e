"""Batch norm in training on the CPU, with its activation, from one C++ source built for several instruction sets.

The modules read tensors by the attributes that Python sees, and are built without torch. Where none could be built, or
none runs on this machine, `why_not` says so and the callers go another way.
"""

import functools
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from normscope import allocator

#: Rows of what a forward saves for its backward, ``(6, C)`` in float32 or, for float64 input, float64.
MEAN, LOW, RSTD, SCALE, OFFSET, VAR = range(6)
ACTIVATIONS = {None: 0, "relu": 1, "leaky_relu": 2}

#: Types of values and of rows of parameters, in the order of the kernel's numbers for them.
TYPES = (torch.float32, torch.bfloat16, torch.float64)
_BUILDS = ("_avx512", "_avx2", "_baseline")


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    """Return the best build that this machine runs, and why there is none."""
    module, reason = _best()
    if module is not None:
        # Past the cache only then: on pages that must be fetched from the system first it costs more than it saves.
        allocator.when_kept(functools.partial(module.expect_recycled, True))
    return module, reason


def build(name: str) -> ModuleType:
    """Import the build for one instruction set.

    Args:
        name: ``"_baseline"``, ``"_avx2"`` or ``"_avx512"``.

    Raises:
        ImportError: It was not built, or from older sources, or does not load here.
    """
    module = importlib.import_module(f"{__name__}.{name}")
    if not hasattr(module, "learn"):
        raise ImportError(f"{module.__name__} was built from older sources: install normscope again")
    # What it tells tensors by, and makes them with.
    module.learn(Tensor, torch.nn.Parameter, torch.strided, torch.empty_like, *TYPES, torch.int64)
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


def empty_saved(x: Tensor) -> Tensor:
    """Return memory ``(6, C)`` for what a forward of ``x`` saves."""
    return x.new_empty((6, x.shape[1]), dtype=x.dtype if x.dtype is torch.float64 else torch.float32)


@functools.cache
def _kernel() -> Any:
    module = _load()[0]
    assert module is not None
    return module
