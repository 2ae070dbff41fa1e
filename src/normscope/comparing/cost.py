"""What a training step of each arm costs: time and memory, the arms in turn within one process."""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normscope._errors import StoreError
from normscope.bench import peak_bytes
from normscope.comparing.arms import Arm
from normscope.comparing.plan import Plan, Progress
from normscope.comparing.training import Steps
from normscope.modules.rng import streams_kept
from normscope.modules.settings import Settings, settings_kept
from normscope.records import Record
from normscope.records.addresses import place_of, save
from normscope.records.json import loads
from normscope.running import one_thread
from normscope.usercode import users_code

_FILE = "cost.json"
_WARM, _ROUNDS = 2, 8


def measure_cost(arms: Sequence[Arm], plan: Plan, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Time a step of every arm, round by round in turn, and take the memory of a step; anew for every seed.

    Nothing else should run meanwhile: so it is done in one process, after all training.

    Args:
        arms: The arms.
        plan: Its seeds are measured.
        progress: Called after every seed.

    Returns:
        For each arm and seed the median seconds of a step, and the most bytes that the tensors made in a step hold.

    Raises:
        UsageError: The user's code raises.
    """
    rows: list[dict[str, Any]] = []
    for seed in range(plan.seeds):
        if progress is not None:
            progress("timing steps", seed, plan.seeds)
        with streams_kept(), one_thread(), settings_kept(), users_code("a training step that is timed"):
            rows += _costs(_made(arms, seed), seed)
    if progress is not None:
        progress("timing steps", plan.seeds, plan.seeds)
    return rows


def _made(arms: Sequence[Arm], seed: int) -> dict[str, Steps]:
    """Make all arms of a seed; each factory begins from the same settings, and its settings stay while it is timed."""
    settings, found = Settings(), {}
    for arm in arms:
        settings.restore()
        found[arm.name] = Steps(arm.make(seed)[0], seed)
    return found


def _costs(arms: dict[str, Steps], seed: int) -> list[dict[str, Any]]:
    for steps in arms.values():
        for _ in range(_WARM):
            steps.step()
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(_ROUNDS):
        for name in arms if turn % 2 == 0 else reversed(arms):
            batch = arms[name].next_batch()
            began = time.perf_counter()
            arms[name].step(batch)
            times[name].append(time.perf_counter() - began)
    return [
        {
            "arm": name,
            "seed": seed,
            "seconds": statistics.median(times[name]),
            "bytes": peak_bytes(lambda steps=steps: _once(steps)),  # type: ignore[misc]
        }
        for name, steps in arms.items()
    ]


def _once(steps: Steps) -> None:
    steps.step()


def has_cost(folder: Path, arms: Sequence[Arm], plan: Plan) -> bool:
    """Say whether the folder of a run holds what a step of every arm costs, for every seed."""
    found = {(arm, seed) for arm, seed, _ in read_cost(folder)}
    return all((arm.name, seed) in found for arm in arms for seed in range(plan.seeds))


def write_cost(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write what was measured into the folder of a run."""
    save(folder / _FILE, json.dumps({"rows": list(rows)}, indent=1) + "\n")


def read_cost(folder: Path) -> list[tuple[str, int, Record]]:
    """Return what was measured as arm, seed and record; nothing where it was not, or the file is damaged."""
    try:
        rows = loads(place_of(folder).read(_FILE))["rows"]
        return [
            (str(row["arm"]), int(row["seed"]), Record("", 0, "cost", "", name, float(row[name])))
            for row in rows
            for name in ("seconds", "bytes")
        ]
    except (OSError, ValueError, KeyError, TypeError, StoreError):
        return []
