"""Time of batch norm with ReLU on a GPU, beside torch eager, torch.compile, and the floor that memory sets.

In a round every candidate runs once, in random order, between two events on the device. Before each, a buffer larger
than the cache is written: it empties the cache, and while it runs the candidate's launches are queued, so that what is
timed is the device's work and not the caller's. The floor is measured in the same rounds on tensors of the same size: a
copy for the forward, which can do no less than read ``x`` and write ``y``; and an addition for the backward, which
reads ``x`` and the output's gradient and writes the input's.
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normscope import layers, ops
from normscope._errors import UsageError
from normscope.bench._timing import Act, Progress
from normscope.records import provenance

#: Shapes of the inputs of batch norms in two networks, from the largest maps to the smallest.
SHAPES: Mapping[str, tuple[int, ...]] = {
    "VGG-16, block 1": (64, 64, 224, 224),
    "VGG-16, block 3": (128, 256, 56, 56),
    "VGG-16, block 5": (256, 512, 14, 14),
    "ResNet-50, stem": (64, 64, 112, 112),
    "ResNet-50, stage 1": (64, 256, 56, 56),
    "ResNet-50, stage 2": (128, 128, 28, 28),
    "ResNet-50, stage 3": (256, 1024, 14, 14),
    "ResNet-50, stage 4": (256, 2048, 7, 7),
}
DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
FORMATS: Mapping[str, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
OURS, EAGER, COMPILED = "normscope", "torch eager", "torch.compile"
FORWARD, BOTH = "forward", "forward and backward"
_CACHE = 256 * 2**20  # bytes that no GPU's cache holds


@dataclass(frozen=True, slots=True)
class GpuRow:
    """Time of one candidate on one input.

    Attributes:
        input: Where in which network the shape is from.
        shape: Of the input.
        dtype: Of the input; parameters and statistics are float32.
        layout: ``contiguous`` or ``channels_last``.
        work: ``forward`` or ``forward and backward``.
        candidate: Whose batch norm with ReLU.
        ms: Median over the rounds, in milliseconds.
        low: First quartile.
        high: Third quartile.
        floor_ms: Median time of the least that memory has to do for this work.
        share: ``floor_ms / ms``: 1 is as fast as memory.
        gigabytes_per_second: Of that least traffic, in the candidate's time.
        speedup: Median over rounds of torch eager's time over this candidate's; 1 for torch eager itself.
    """

    input: str
    shape: tuple[int, ...]
    dtype: str
    layout: str
    work: str
    candidate: str
    ms: float
    low: float
    high: float
    floor_ms: float
    share: float
    gigabytes_per_second: float
    speedup: float


def measure(progress: Progress | None = None) -> dict[str, Any]:
    """Measure our kernel, torch eager and torch.compile on the GPU.

    Args:
        progress: Called with (input, inputs done, inputs in all).

    Returns:
        A JSON object: ``rows``, ``device`` and ``provenance``.

    Raises:
        UsageError: There is no CUDA device.
    """
    with ops.using("kernel") if torch.cuda.is_available() else ops.using("torch"):
        rows = measure_gpu(progress)
    return {
        "rows": [asdict(row) for row in rows],
        "device": torch.cuda.get_device_name(),
        "provenance": provenance.collect(),
    }


def measure_gpu(
    progress: Progress | None = None,
    *,
    rounds: int = 30,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    dtypes: Sequence[str] = tuple(DTYPES),
    formats: Sequence[str] = tuple(FORMATS),
) -> list[GpuRow]:
    """Time batch norm with ReLU in training on the current CUDA device.

    Args:
        progress: Called with (input, inputs done, inputs in all).
        rounds: Interleaved rounds for each input, after three to warm up.
        shapes: Inputs by name, each ``(N, C, H, W)``.
        dtypes: Names in `DTYPES`.
        formats: Names in `FORMATS`.

    Returns:
        A row for each input, type, layout, work and candidate.

    Raises:
        UsageError: There is no CUDA device, no round, or no such type or layout.
    """
    if rounds < 1:
        raise UsageError(f"rounds={rounds} must be 1 or more")
    for kind, asked, known in (("type", dtypes, DTYPES), ("layout", formats, FORMATS)):
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise UsageError(f"no {kind} {unknown[0]!r} to measure in; there are {', '.join(known)}")
    if not torch.cuda.is_available():
        raise UsageError("no CUDA device to measure on: run this on a machine with one, or measure on the CPU")
    device = torch.device("cuda", torch.cuda.current_device())
    return _measure(device, progress, rounds, shapes, dtypes, formats, CANDIDATES)


def _measure(
    device: torch.device,
    progress: Progress | None,
    rounds: int,
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Sequence[str],
    formats: Sequence[str],
    candidates: Mapping[str, Callable[[int], nn.Module]],
) -> list[GpuRow]:
    found: list[GpuRow] = []
    clock = _clock(device)
    inputs = [(name, dtype, layout) for name in shapes for dtype in dtypes for layout in formats]
    for done, (name, dtype, layout) in enumerate(inputs):
        if progress is not None:
            progress(f"{name}, {dtype}, {layout}", done, len(inputs))
        shape = shapes[name]
        x = torch.randn(shape, device=device).to(DTYPES[dtype], memory_format=FORMATS[layout]).requires_grad_()
        g = torch.randn_like(x.detach())
        modules = {candidate: make(shape[1]).to(device).train() for candidate, make in candidates.items()}
        for work in (FORWARD, BOTH):
            acts, floor = _acts(modules, x, g, work)
            times = _rounds(acts, clock, rounds)
            passes = 2 if work == FORWARD else 5
            traffic = passes * x.numel() * x.element_size()
            for candidate in modules:
                numbers = times[candidate], times[floor], times.get(EAGER, times[candidate])
                found.append(_row((name, shape, dtype, layout, work, candidate), traffic, *numbers))
        del x, g, modules, acts
        _forget(device)
    if progress is not None:
        progress("", len(inputs), len(inputs))
    return found


def _ours(channels: int) -> nn.Module:
    return layers.BatchNorm2d(channels, activation="relu")


def _eager(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())


def _compiled(channels: int) -> nn.Module:
    compiled: nn.Module = torch.compile(_eager(channels), dynamic=False)  # type: ignore[assignment, unused-ignore]
    return compiled


CANDIDATES: Mapping[str, Callable[[int], nn.Module]] = {OURS: _ours, EAGER: _eager, COMPILED: _compiled}


def _acts(modules: Mapping[str, nn.Module], x: Tensor, g: Tensor, work: str) -> tuple[dict[str, Act], str]:
    """Return the timed functions by name, and the name of the floor."""
    acts: dict[str, Act] = {}
    for name, module in modules.items():
        leaves = [x, *module.parameters()]

        def forward(module: nn.Module = module) -> object:
            return module(x)  # with a graph, as in training

        def both(module: nn.Module = module, leaves: list[Tensor] = leaves) -> object:
            return torch.autograd.grad(module(x), leaves, g)

        acts[name] = forward if work == FORWARD else both
    values, out = x.detach(), torch.empty_like(g)

    def floor() -> None:
        out.copy_(values)
        if work == BOTH:
            torch.add(values, g, out=out)

    acts["floor"] = floor
    return acts, "floor"


def _rounds(acts: Mapping[str, Act], clock: Callable[[Act], float], rounds: int) -> dict[str, list[float]]:
    order = random.Random(0)
    for _ in range(3):
        for act in acts.values():
            act()
    times: dict[str, list[float]] = {name: [] for name in acts}
    for _ in range(rounds):
        for name in order.sample(list(acts), len(acts)):
            times[name].append(clock(acts[name]))
    return times


def _row(
    said: tuple[str, tuple[int, ...], str, str, str, str],
    traffic: int,
    taken: list[float],
    floor: list[float],
    eager: list[float],
) -> GpuRow:
    low, median, high = statistics.quantiles(taken, n=4, method="inclusive") if len(taken) > 1 else taken * 3
    speedup = statistics.median(a / b for a, b in zip(eager, taken, strict=True))
    least = statistics.median(floor)
    return GpuRow(*said, median, low, high, least, least / median, traffic / median / 1e6, speedup)


def _clock(device: torch.device) -> Callable[[Act], float]:
    """Return a function that times a call on the device, in milliseconds."""
    if device.type != "cuda":

        def by_the_wall(act: Act) -> float:
            began = time.perf_counter()
            act()
            return 1e3 * max(time.perf_counter() - began, math.ulp(1.0))

        return by_the_wall
    cache = torch.empty(_CACHE, dtype=torch.int8, device=device)

    def by_events(act: Act) -> float:
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(4):  # long enough for the caller to have queued all of the act
            cache.zero_()
        before.record()
        act()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after))

    return by_events


def _forget(device: torch.device) -> None:
    """Let go of memory and of compiled variants, of which torch keeps only so many."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch._dynamo.reset()
