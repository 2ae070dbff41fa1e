"""Time of layer, RMS, group and instance norm in training, forward and backward, beside torch's layers.

Timed as `normscope.bench.layers` times batch norm: every round runs every candidate once, in random order, and ratios
are taken within a round.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import nn

from normscope import layers, ops
from normscope._errors import UsageError
from normscope.bench._timing import Act, Progress, load, ratio, rounds
from normscope.records import provenance

Shape = tuple[int, ...]
#: Layers by name: from torch's module or ours, and a shape, the layer; and the shapes.
KINDS: Mapping[str, tuple[Callable[[ModuleType, Shape], nn.Module], tuple[Shape, ...]]] = {
    "LayerNorm": (lambda room, shape: room.LayerNorm(shape[-1]), ((64, 128, 512), (32, 256, 768), (8, 1024, 1024))),
    "RMSNorm": (lambda room, shape: room.RMSNorm(shape[-1]), ((64, 128, 512), (32, 256, 768), (8, 1024, 1024))),
    "GroupNorm": (lambda room, shape: room.GroupNorm(8, shape[1]), ((32, 64, 32, 32), (32, 256, 16, 16))),
    "InstanceNorm2d": (
        lambda room, shape: room.InstanceNorm2d(shape[1], affine=True),
        ((32, 64, 32, 32), (32, 256, 16, 16)),
    ),
}
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}


def measure(*, only: str = "", progress: Progress | None = None) -> dict[str, Any]:
    """Measure all layers on one thread and on all.

    Args:
        only: Part of the cases to measure, as written: "RMSNorm" or "(64, 128, 512)"; all if empty.
        progress: Called with (what is measured, cases done, cases in all).

    Returns:
        A JSON object: ``rows``, ``kernel`` (whether there is one, or why not), ``load`` and ``provenance``.

    Raises:
        UsageError: No case has that in its name.
    """
    cases = [
        (kind, shape, name)
        for kind, (_, shapes) in KINDS.items()
        for shape in shapes
        for name in DTYPES
        if only in f"{kind} {shape}"
    ]
    if not cases:
        raise UsageError(f"no case {only!r} to measure; there are {', '.join(KINDS)}")
    before, found = load(), []
    for done, (kind, shape, name) in enumerate(cases):
        if progress is not None:
            progress(f"{kind} {shape} {name}", done, len(cases))
        found += measure_case(kind, shape, name)
    return {
        "rows": found,
        "kernel": ops.kernel_of_rows(),
        "load": {"before": before, "after": load()},
        "provenance": provenance.collect(),
    }


def measure_case(kind: str, shape: Shape, dtype: str) -> list[dict[str, Any]]:
    """Time one layer on inputs of one shape and type.

    Args:
        kind: Name of the layer.
        shape: Of the input.
        dtype: Name of the type, of the parameters too.

    Returns:
        One row for each number of threads: medians of times in milliseconds, and of ratios within rounds with their
        quartiles.
    """
    make, _ = KINDS[kind]
    most, measured = torch.get_num_threads(), []
    torch.manual_seed(0)
    leaf, g = (torch.randn(shape).to(DTYPES[dtype]) for _ in range(2))
    leaf.requires_grad_()
    modules = {name: make(room, shape).to(DTYPES[dtype]) for name, room in (("torch", nn), ("ours", layers))}
    acts: dict[str, Act] = {name: _step(module, leaf, g) for name, module in modules.items()}
    acts["copy"] = leaf.detach().clone
    try:
        for threads in sorted({1, most}):
            torch.set_num_threads(threads)
            times = rounds(acts, time.thread_time if threads == 1 else time.perf_counter)
            measured.append(
                {
                    "layer": kind,
                    "shape": shape,
                    "dtype": dtype,
                    "threads": threads,
                    "ms": {name: 1e3 * statistics.median(ran) for name, ran in times.items()},
                    "ours / torch": ratio(times, "ours", "torch"),
                    "ours / copy": ratio(times, "ours", "copy"),
                }
            )
    finally:
        torch.set_num_threads(most)
    return measured


def _step(module: nn.Module, leaf: torch.Tensor, g: torch.Tensor) -> Act:
    def act() -> None:
        module(leaf).backward(g)
        leaf.grad = None
        for parameter in module.parameters():
            parameter.grad = None

    return act
