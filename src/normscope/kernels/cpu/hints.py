"""How the CPU kernels go about memory on this machine: from its caches, and a short calibration.

No bit of a result depends on any of it. What pays differs between processors. To fetch outputs for writing was worth a
third of the time on one Intel Xeon, and costs time on AMD's Zen 4, where outputs that go past the cache are written
three times as fast.
"""

import contextlib
import ctypes
import mmap
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

#: Set to ``off``, ``0`` or ``no``, this variable of the environment keeps to what follows from the caches.
SWITCH = "NORMSCOPE_CALIBRATION"
#: Seconds after which a calibration measures no further; and what a change must bring.
SECONDS, GAIN = 0.045, 0.97

_CPU = Path("/sys/devices/system/cpu/cpu0/cache")
_MIB = 1 << 20


class Caches(NamedTuple):
    """Sizes in bytes.

    Attributes:
        near: First level, of a core.
        own: Second level, of a core.
        shared: Third level, of ``sharers`` processors together; 0 for none.
        sharers: How many have it.
    """

    near: int = 32 << 10
    own: int = _MIB
    shared: int = 0
    sharers: int = 1

    def __str__(self) -> str:
        """Return all in words."""
        near, own, shared = (_size(value) for value in self[:3])
        return f"L1 {near}, L2 {own}, L3 {shared} of {self.sharers}" if self.shared else f"L1 {near}, L2 {own}"


class Hints(NamedTuple):
    """How memory is gone about, in the kernel's order; sizes in bytes, 0 for not at all.

    Attributes:
        own: What a core has for itself.
        shared: What lies behind it, for all cores.
        stretch: What memory is to be read in at least, where a cache has room.
        ahead: How far ahead outputs are fetched for writing.
        stream: From which size on outputs go past the cache, on pages that are there.
        stream_fresh: On fresh pages too, from 8 MiB on.
        next: Whether the second pass over a block fetches the next block.
        pairs: Whether rows are taken in pairs, and rows further on fetched.
        large_pages: Whether fresh outputs are asked for in large pages.
    """

    own: int
    shared: int
    stretch: int
    ahead: int
    stream: int
    stream_fresh: bool
    next: bool
    pairs: bool
    large_pages: bool = True

    def __str__(self) -> str:
        """Return all in words."""
        streamed = f"outputs of {_size(self.stream)} and more past the cache"
        outputs = streamed if self.stream else "outputs through the cache"
        fetched = f", fetched {self.ahead} B ahead" if self.ahead else ""
        stretched = f" or stretches of {_size(self.stretch)}" if self.stretch else ""
        blocks = f"blocks of {_size(self.own // 4)}{stretched}"
        more = [word for word, on in (("next block fetched", self.next), ("rows in pairs", self.pairs)) if on]
        return ", ".join([outputs + fetched, blocks, *more])


class Choice(NamedTuple):
    """Hints, on which caches, and why these."""

    hints: Hints
    caches: Caches
    reason: str

    def __str__(self) -> str:
        """Return all on one line."""
        return f"{self.hints} ({self.caches}; {self.reason})"


def _size(count: int) -> str:
    for unit, name in ((_MIB, "MiB"), (1 << 10, "KiB")):
        if count >= unit:
            return f"{count / unit:g} {name}"
    return f"{count} B"


def caches(folder: Path = _CPU) -> Caches:
    """Return the caches of the first processor, as the system tells them; else what most machines have at least.

    The C library's `sysconf` counts the third level of a whole socket, of which a virtual machine has a part.
    """
    found: dict[str, int] = {}
    for index in sorted(folder.glob("index*")):
        try:
            level, kind, size, shared_by = (
                (index / name).read_text(encoding="ascii").strip()
                for name in ("level", "type", "size", "shared_cpu_list")
            )
            count = int(size.rstrip("KM")) << (20 if size.endswith("M") else 10)
        except (OSError, ValueError):
            continue
        if kind == "Instruction" or count <= 0:
            continue
        if level == "1":
            found["near"] = count
        elif level == "2":
            found["own"] = min(max(count, 128 << 10), 16 * _MIB)
        elif level == "3":
            found["shared"] = count
            found["sharers"] = _count(shared_by)
    return Caches(**found)


def _count(cpus: str) -> int:
    """Count the processors of a list like ``0-3,8``."""
    total = 0
    for part in cpus.split(","):
        first, _, last = part.partition("-")
        total += int(last or first) - int(first) + 1 if first.isdigit() else 0
    return max(total, 1)


def vendor(info: Path = Path("/proc/cpuinfo")) -> str:
    """Return the vendor's name for its processor, ``AuthenticAMD``; empty where the system does not tell."""
    try:
        with info.open(encoding="utf-8", errors="replace") as lines:
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")
    except OSError:
        return ""


def by_rules(sizes: Caches, maker: str = "") -> Choice:
    """Return what follows from the caches and the vendor alone."""
    amd = maker == "AuthenticAMD"
    # Past the cache goes what the next layer would not find there any more: a quarter of the last level. On an AMD EPYC
    # from an eighth on, an output and who reads it then take 0.76 to 0.98 of the time, unless all stays in it anyway.
    share, least = (8, 4 * _MIB) if amd else (4, 8 * _MIB)
    stream = min(max(sizes.shared // share, least), 64 * _MIB)
    hints = Hints(
        own=sizes.own,
        shared=sizes.shared,
        stretch=65536 if amd else 0,
        ahead=0 if amd else 512,
        stream=stream,
        stream_fresh=amd,
        next=True,
        pairs=amd,
    )
    return Choice(hints, sizes, "by rules for AMD, not calibrated" if amd else "by rules, not calibrated")


class Problem(NamedTuple):
    """What is timed: values ``(samples, channels, positions)`` in float32, forward or backward."""

    samples: int
    channels: int
    positions: int
    last: bool
    backward: bool


#: In runs of 4 KiB and in rows of 1 KiB: forwards of 16 MiB, and backwards of 8 MiB, which read two such tensors.
RUNS = Problem(32, 128, 1024, False, False), Problem(16, 128, 1024, False, True)
ROWS = Problem(64, 256, 256, True, False), Problem(32, 256, 256, True, True)


class _Memory:
    """Two tensors of 16 MiB, and room for what a forward saves."""

    def __init__(self) -> None:
        self._maps = [mmap.mmap(-1, size, **_PRIVATE) for size in (16 * _MIB, 16 * _MIB, 1 << 16)]
        for part in self._maps[:2]:
            if hasattr(mmap, "MADV_HUGEPAGE"):  # handed out 4 KiB at a time they take a third of the calibration
                with contextlib.suppress(OSError):
                    part.madvise(mmap.MADV_HUGEPAGE)
        self._views = [(ctypes.c_char * len(part)).from_buffer(part) for part in self._maps]
        self._at = [ctypes.addressof(view) for view in self._views]
        for at in self._at[:2]:
            ctypes.memset(at, 0x3F, 16 * _MIB)

    def addresses(self, problem: Problem) -> tuple[int, int, int, int]:
        """Return where input, cotangent (0 for none), output and what is saved lie."""
        first, second, saved = self._at
        return first, first + 8 * _MIB if problem.backward else 0, second, saved

    def free(self) -> None:
        """Give it back."""
        self._views.clear()
        for part in self._maps:
            part.close()


_PRIVATE: Mapping[str, int] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_ANONYMOUS") else {}  # type: ignore[attr-defined, unused-ignore]
)

Timer = Callable[[Hints, Problem], float]


def calibrate(time_of: Timer, rules: Choice, seconds: float = SECONDS) -> Choice:
    """Return the hints by which passes were fastest.

    One question after the other: how outputs are written, how rows are read, how blocks are. Candidates take turns, and
    the fastest run of each counts. A choice beats that of the rules if it is 3 % faster.

    Args:
        time_of: Seconds of one pass by hints, on a problem.
        rules: To begin with.
        seconds: After which only the first turn of a question is taken.
    """
    began, best, said = time.perf_counter(), rules.hints, []
    questions: list[tuple[str, tuple[Problem, ...], dict[str, dict[str, Any]]]] = [
        (
            "outputs",
            (RUNS[0], ROWS[0]),
            {
                "past the cache": {"ahead": 0, "stream": best.stream, "stream_fresh": True},
                "plain": {"ahead": 0, "stream": 0, "stream_fresh": False},
                "fetched": {"ahead": 512, "stream": 0, "stream_fresh": False},
            },
        ),
        ("rows", ROWS, {"one by one": {"pairs": False}, "in pairs": {"pairs": True}}),
        (
            "blocks",
            RUNS,
            {
                "small": {"stretch": 0, "next": False},
                "small, next fetched": {"stretch": 0, "next": True},
                "stretched": {"stretch": 65536, "next": False},
                "stretched, next fetched": {"stretch": 65536, "next": True},
            },
        ),
    ]
    for name, problems, ways in questions:
        times = dict.fromkeys(ways, 0.0)
        for problem in problems:
            least = dict.fromkeys(ways, float("inf"))
            for turn in range(3):
                if turn and time.perf_counter() - began > seconds:
                    break
                for way, change in ways.items():
                    least[way] = min(least[way], time_of(best._replace(**change), problem))
            for way in ways:
                times[way] += least[way]
        now = next((way for way, change in ways.items() if best._replace(**change) == best), None)
        won = min(times, key=lambda way: times[way])
        if now is not None and times[won] > GAIN * times[now]:
            won = now
        best = best._replace(**ways[won])
        said.append(f"{name} {', '.join(f'{way} {1e3 * took:.2f}' for way, took in times.items())}")
    took = 1e3 * (time.perf_counter() - began)
    return Choice(best, rules.caches, f"calibrated in {took:.0f} ms: {'; '.join(said)} ms")


def settle(module: Any, rules: Choice) -> Choice:
    """Return the choice for this process: calibrated, or by the rules where the environment says so or memory lacks."""
    if os.environ.get(SWITCH, "").lower() in ("off", "0", "no"):
        return rules._replace(reason=f"by rules: {SWITCH} is off")
    try:
        memory = _Memory()
    except (OSError, MemoryError, ValueError):
        return rules

    def time_of(hints: Hints, problem: Problem) -> float:
        # A small threshold, so that the problem counts as large.
        asked = hints._replace(stream=min(hints.stream, _MIB))
        return float(module.time_pass(*memory.addresses(problem), *problem[:4], *asked))

    try:
        return calibrate(time_of, rules)
    finally:
        memory.free()
