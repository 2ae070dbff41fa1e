"""Rounds in which every candidate runs once, and ratios within a round."""

import os
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

Progress = Callable[[str, int, int], None]
Act = Callable[[], object]

#: No round begins after so many seconds, once there are `LEAST_ROUNDS`; and there are never more than `MOST_ROUNDS`.
SECONDS, MOST_ROUNDS, LEAST_ROUNDS = 2.0, 150, 7


def rounds(acts: Mapping[str, Act], clock: Callable[[], float], seconds: float | None = None) -> dict[str, list[float]]:
    """Run all acts in rounds, each once and in random order, and return their times in seconds.

    Args:
        acts: What to time.
        clock: In seconds.
        seconds: Wall time after which no more rounds begin, once there are enough; `SECONDS` if None.
    """
    for act in acts.values():
        act()
        act()
    times: dict[str, list[float]] = {name: [] for name in acts}
    order, began = list(acts), time.perf_counter()
    dice = random.Random(0)
    for done in range(MOST_ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() - began > (SECONDS if seconds is None else seconds):
            break
        dice.shuffle(order)
        for name in order:
            start = clock()
            acts[name]()
            times[name].append(clock() - start)
    return times


def ratio(times: Mapping[str, Sequence[float]], over: str, under: str) -> dict[str, float]:
    """Return the median and the quartiles of the ratio of two candidates within rounds."""
    found = sorted(a / b for a, b in zip(times[over], times[under], strict=True))
    low, median, high = statistics.quantiles(found, n=4)
    return {"median": median, "low": low, "high": high}


def load() -> float | None:
    """Return the machine's load over the last minute; None on a system that does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
