"""Batch norm in training on the CPU, with its activation, from one C++ source built for several instruction sets.

The modules take addresses and sizes: they know nothing of torch, and are built without it. Where none could be built,
or none runs on this machine, `why_not` says so and the callers go another way.
"""

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from normscope import allocator

#: Rows of what a forward saves for its backward, ``(6, C)`` in float32 or, for float64 input, float64.
MEAN, LOW, RSTD, SCALE, OFFSET, VAR = range(6)
ACTIVATIONS = {None: 0, "relu": 1, "leaky_relu": 2}

#: Types of values and of rows of parameters, and their numbers.
TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float64: 2}
_BUILDS = ("_avx512", "_avx2", "_baseline")
_NOTHING = (None, None, None)


@functools.cache
def _load() -> tuple[ModuleType | None, str]:
    """Return the best build that this machine runs, and why there is none."""
    module, reason = _best()
    if module is not None:
        # Past the cache only then: on pages that must be fetched from the system first it costs more than it saves.
        allocator.when_kept(functools.partial(module.expect_recycled, True))
    return module, reason


def _best() -> tuple[ModuleType | None, str]:
    found: dict[str, ModuleType] = {}
    try:
        found["_baseline"] = importlib.import_module(f"{__name__}._baseline")
    except ImportError as error:
        return None, f"the extension was not built, or does not load: {error}"
    runs = found["_baseline"].supports()
    for name in _BUILDS[:-1]:
        if runs[name]:
            try:
                return importlib.import_module(f"{__name__}.{name}"), ""
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


def laid_out(x: Tensor) -> tuple[int, int, int, int] | None:
    """Return samples, channels, positions, and 1 where channels lie side by side in memory; None where they do neither.

    Args:
        x: Values ``(N, C, *)``.
    """
    shape = x.shape
    samples, channels = shape[0], shape[1]
    if x.is_contiguous():
        positions = x.numel() // (samples * channels)
        return (samples, channels, 1, 1) if positions == 1 else (samples, channels, positions, 0)
    if x.movedim(1, -1).is_contiguous():
        return samples, channels, x.numel() // (samples * channels), 1
    return None


def forward(
    x: Tensor,
    layout: tuple[int, int, int, int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: int,
    slope: float,
    running: tuple[Tensor, Tensor, Tensor | None] | None,
    share: float,
    y: Tensor,
) -> Tensor:
    """Normalize by the statistics of the batch, scale, shift, activate; move running statistics.

    Args:
        x: Values ``(N, C, *)``, dense: float32, bfloat16 or float64.
        layout: What `laid_out` says of it.
        weight: Gain ``(C,)``, dense, of any of the types; or None for 1.
        bias: Shift ``(C,)``, likewise; or None for 0.
        eps: Added to the variance.
        activation: One of the numbers in `ACTIVATIONS`.
        slope: Of leaky ReLU.
        running: Mean and variance ``(C,)``, moved in place, and a count of batches (int64) that goes up by one, or None
            for none; or None for all.
        share: Of this batch in them.
        y: Where the output goes: laid out like ``x``, or ``x`` itself.

    Returns:
        What the backward needs, ``(6, C)``.
    """
    dtype = x.dtype
    saved = torch.empty((6, layout[1]), dtype=dtype if dtype is torch.float64 else torch.float32)
    mean, var, seen = _NOTHING if running is None else running
    # One call, spelled out: on a small batch a loop over the rows costs what the kernel does.
    _kernel().forward(
        *layout,
        torch.get_num_threads(),
        TYPES[dtype],
        activation,
        slope,
        eps,
        share,
        x.data_ptr(),
        y.data_ptr(),
        saved.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if weight is None else TYPES[weight.dtype],
        0 if bias is None else bias.data_ptr(),
        0 if bias is None else TYPES[bias.dtype],
        0 if mean is None else mean.data_ptr(),
        0 if mean is None else TYPES[mean.dtype],
        0 if var is None else var.data_ptr(),
        0 if var is None else TYPES[var.dtype],
        0 if seen is None else seen.data_ptr(),
    )
    return saved


def backward(
    g: Tensor,
    x: Tensor,
    layout: tuple[int, int, int, int],
    weight: Tensor | None,
    bias: Tensor | None,
    saved: Tensor,
    activation: int,
    slope: float,
    wanted: Sequence[bool],
    *,
    from_output: bool = False,
    over: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of ``x``, ``weight`` and ``bias``; what is not wanted is None.

    Args:
        g: Cotangent of the output, laid out like ``x`` and of its type.
        x: The input; with ``from_output``, the output instead (no activation, or leaky ReLU).
        layout: What `laid_out` says of it.
        weight: As in the forward.
        bias: Likewise.
        saved: What the forward returned.
        activation: As in the forward.
        slope: Likewise.
        wanted: Which gradients: at least three truth values.
        from_output: Whether the normalized values are taken back from the output.
        over: Where to put the gradient of ``x``: laid out like it, and may be ``g``. None for new memory.
    """
    g_x = (torch.empty_like(x) if over is None else over) if wanted[0] else None
    g_weight = torch.empty_like(weight) if wanted[1] and weight is not None else None
    g_bias = torch.empty_like(bias) if wanted[2] and bias is not None else None
    _kernel().backward(
        *layout,
        torch.get_num_threads(),
        TYPES[x.dtype],
        activation,
        from_output,
        slope,
        g.data_ptr(),
        x.data_ptr(),
        0 if g_x is None else g_x.data_ptr(),
        saved.data_ptr(),
        0 if weight is None else weight.data_ptr(),
        0 if weight is None else TYPES[weight.dtype],
        0 if bias is None else bias.data_ptr(),
        0 if bias is None else TYPES[bias.dtype],
        0 if g_weight is None else g_weight.data_ptr(),
        0 if g_weight is None else TYPES[g_weight.dtype],
        0 if g_bias is None else g_bias.data_ptr(),
        0 if g_bias is None else TYPES[g_bias.dtype],
    )
    return g_x, g_weight, g_bias


@functools.cache
def _kernel() -> Any:
    module = _load()[0]
    assert module is not None
    return module
