"""Time of batch norm with ReLU, forward and backward, beside torch's; its share of a training step; its peak memory.

Every round runs every candidate once, in random order, and ratios are taken within a round: what else the machine
does hits all alike. On one thread the clock is the thread's processor time, which repeats under load; on all cores it
is wall time, for which the machine must be quiet. Each setting of the allocator has a process of its own:
`normscope.allocator` cannot be undone.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normscope import allocator, layers, ops
from normscope._errors import UsageError
from normscope.bench import _training_steps
from normscope.bench._timing import Act, Progress, load, ratio, rounds
from normscope.records import provenance

SHAPES: tuple[tuple[int, ...], ...] = (
    (128, 64, 32, 32),
    (128, 128, 16, 16),
    (128, 512, 4, 4),
    (64, 64, 56, 56),
    (32, 256, 28, 28),
    (64, 24, 56, 56),
    (256, 100),
    (128, 64),
)
#: Of an input for which a kernel is calibrated, so that the choice is told.
_LARGE = (16, 64, 32, 32)
DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}
ALLOCATORS = ("recycled", "default")


def measure(
    *,
    only: str = "",
    allocators: Sequence[str] = ALLOCATORS,
    compiled: bool = True,
    whole: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure layers, whole steps and peak memory.

    Args:
        only: Part of the shapes to measure, as written: "(128, 64)"; all if empty.
        allocators: ``"recycled"`` (freed blocks stay in the process) and ``"default"`` (glibc as it comes).
        compiled: Whether ours and torch's are compiled too, which takes minutes.
        whole: Whether whole training steps and peak memory are measured.
        progress: Called with (what is measured, cases done, cases in all).

    Returns:
        A JSON object: ``rows``, ``steps``, ``memory``, ``kernel`` (what runs here, and why) and ``provenance``.

    Raises:
        UsageError: No shape has that in its name, or there is no such allocator.
    """
    wanted = [shape for shape in SHAPES if only in str(shape)]
    if not wanted:
        raise UsageError(f"no shape {only!r} to measure; there are {', '.join(map(str, SHAPES))}")
    unknown = [name for name in allocators if name not in ALLOCATORS]
    if unknown:
        raise UsageError(f"no allocator {unknown[0]!r} to measure with; there are {', '.join(ALLOCATORS)}")
    jobs = [
        {"shape": shape, "allocator": name, "compiled": compiled and name == "recycled"}
        for name in allocators
        for shape in wanted
    ]
    total = len(jobs) + (len(_training_steps.STEPS) + len(_training_steps.MEMORY) if whole else 0)
    done = 0

    def tell(case: str) -> None:
        nonlocal done
        if progress is not None:
            progress(case, done, total)
        done += 1

    before = load()
    rows: list[dict[str, Any]] = []
    for job in jobs:
        tell(f"{job['shape']} {job['allocator']}")
        rows += measure_apart({"work": "layers", **job})
    steps: list[dict[str, Any]] = []
    memory: list[dict[str, Any]] = []
    if whole:
        for setting in _training_steps.STEPS:
            tell(f"step of {setting['model']}, {setting['kind']}")
            steps.append(measure_apart({"work": "step", "allocator": "default", **setting}))
        for setting in _training_steps.MEMORY:
            tell(f"memory of {setting['model']}, {setting['arm']}")
            memory.append(measure_apart({"work": "memory", "allocator": "default", **setting}))
    return {
        "rows": rows,
        "steps": steps,
        "memory": memory,
        "kernel": str(ops.explain(torch.zeros(_LARGE))),
        "load": {"before": before, "after": load()},
        "provenance": provenance.collect(),
    }


def measure_apart(job: Mapping[str, Any]) -> Any:
    """Run one job in a process of its own, and return its result."""
    code = "from normscope.bench import layers; layers.serve()"
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    ran = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(job), capture_output=True, text=True, env=env, check=False
    )
    if ran.returncode:
        said = ran.stderr.strip().splitlines() or ["no message"]
        raise UsageError(f"measuring {job} failed: {said[-1]}")
    return json.loads(ran.stdout.splitlines()[-1])


def serve() -> None:
    """Read a job from standard input, do it and print the result as JSON: the program of the processes of `measure`."""
    job = json.loads(sys.stdin.read())
    if job["allocator"] == "recycled":
        allocator.keep_large_blocks()
    if job["work"] == "layers":
        found: Any = measure_shape(tuple(job["shape"]), job["allocator"], compiled=job["compiled"])
    elif job["work"] == "step":
        found = _training_steps.measure_step(job["model"], job["kind"])
    else:
        found = _training_steps.measure_memory(job["model"], job["arm"])
    print(json.dumps(found))


def measure_shape(shape: tuple[int, ...], setting: str, *, compiled: bool = False) -> list[dict[str, Any]]:
    """Time every candidate on inputs of one shape: all layouts, types and numbers of threads.

    Args:
        shape: Of the input.
        setting: Name of the allocator's setting, for the rows.
        compiled: Whether ours and torch's are compiled too (float32, on all threads).

    Returns:
        One row for each layout, type and number of threads: medians of times in milliseconds, and of ratios within
        rounds with their quartiles.
    """
    rows = []
    most = torch.get_num_threads()
    for layout in ("contiguous", "channels_last") if len(shape) == 4 else ("contiguous",):
        for name, dtype in DTYPES.items():
            for threads in sorted({1, most}):
                torch.set_num_threads(threads)
                with_compiled = compiled and threads == most and name == "float32"
                case = _Case(shape, dtype, layout, with_compiled)
                clock = time.thread_time if threads == 1 else time.perf_counter
                row = {"shape": shape, "layout": layout, "dtype": name, "threads": threads, "allocator": setting}
                rows.append(row | _summary(rounds(case.acts, clock)))
    torch.set_num_threads(most)
    return rows


class _Case:
    """The candidates on one input."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, layout: str, compiled: bool) -> None:
        torch.manual_seed(0)
        self.x, self.g = (self._values(shape, dtype, layout) for _ in range(2))
        self.leaf = self.x.clone().requires_grad_()
        kind = nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d
        own = layers.BatchNorm1d if len(shape) == 2 else layers.BatchNorm2d
        channels = shape[1]
        modules: dict[str, nn.Module] = {
            "torch": nn.Sequential(kind(channels), nn.ReLU()),
            "torch in place": nn.Sequential(kind(channels), nn.ReLU(inplace=True)),
            "ours": own(channels, activation="relu"),
            "torch BN": kind(channels),
            "ours BN": own(channels),
        }
        if compiled:
            for name in ("torch", "ours"):
                fast: Any = torch.compile(modules[name], dynamic=False)
                modules[f"{name} compiled"] = fast
        self.acts: dict[str, Act] = {name: self._both(module) for name, module in modules.items()}
        self.acts["ours forward"] = self._forward(modules["ours"])
        self.acts["torch forward"] = self._forward(modules["torch"])
        self.acts["copy"] = self.x.clone
        self.acts["add"] = lambda: self.x + self.g

    @staticmethod
    def _values(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
        x = torch.randn(shape).to(dtype)
        return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x

    def _both(self, module: nn.Module) -> Act:
        def act() -> None:
            module(self.leaf).backward(self.g)
            self.leaf.grad = None
            for parameter in module.parameters():
                parameter.grad = None

        return act

    def _forward(self, module: nn.Module) -> Act:
        def act() -> None:
            module(self.leaf)

        return act


def _summary(times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    ratios = {"torch / ours": ("torch", "ours"), "torch in place / ours": ("torch in place", "ours")}
    ratios |= {"torch BN / ours BN": ("torch BN", "ours BN"), "copy / forward": ("copy", "ours forward")}
    if "ours compiled" in times:
        ratios |= {
            "torch compiled / ours": ("torch compiled", "ours"),
            "ours compiled / ours": ("ours compiled", "ours"),
        }
        ratios |= {"torch / ours compiled": ("torch", "ours compiled")}
    found = {name: ratio(times, *pair) for name, pair in ratios.items()}
    # Time of the backward alone: forward and backward less the forward, in the same round.
    backward = [max(both - once, 1e-9) for both, once in zip(times["ours"], times["ours forward"], strict=True)]
    found["add / backward"] = ratio({"add": times["add"], "backward": backward}, "add", "backward")
    # Torch's time over that of a copy and an addition: the most that a kernel could gain that reads and writes once.
    once = [copy + add for copy, add in zip(times["copy"], times["add"], strict=True)]
    found["torch / memory"] = ratio({"torch": times["torch"], "memory": once}, "torch", "memory")
    return {"ms": {name: 1e3 * statistics.median(ran) for name, ran in times.items()}, "ratios": found}
