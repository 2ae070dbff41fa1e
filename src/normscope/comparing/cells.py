"""The runs of a comparison: an arm at a seed and a learning rate is a cell, run as a whole or not at all."""

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from normscope.comparing.arms import Arm
from normscope.comparing.plan import Plan, Progress
from normscope.comparing.reuse import run_of, serving
from normscope.comparing.training import run_cell
from normscope.modules.rng import streams_kept
from normscope.modules.settings import settings_kept
from normscope.records import Cell, Record, Store
from normscope.stats.decide import FEWEST_SEEDS
from normscope.studies.workers import in_processes, one_thread

_LAST = 0.05  # of a budget is left for the page and for what was not foreseen


@dataclass(frozen=True)
class Clock:
    """How long a comparison may go on.

    Attributes:
        began: When it began, by ``time.perf_counter``.
        budget: Seconds that it may take; None for as long as it needs.
        rescue: What the arm that may be added takes, as a share of what all arms take.
    """

    began: float
    budget: float | None
    rescue: float = 0.0

    def allows(self, seeds: int, seconds: float) -> bool:
        """Say whether there is time for a further seed.

        Args:
            seeds: How many seeds there are already.
            seconds: How long a seed takes.
        """
        if self.budget is None:
            return True
        rest = seconds * (1 + self.rescue * (seeds + 1))
        return time.perf_counter() - self.began + rest <= (1 - _LAST) * self.budget


def cells_of(arms: Sequence[Arm], plan: Plan) -> list[Cell]:
    """List every cell of a run, seed by seed, so that an interrupted run has whole seeds to judge."""
    return [
        run_of(plan, arm.as_json(), seed, rate) for seed in range(plan.seeds) for arm in arms for rate in plan.rates
    ]


def run_seeds(
    store: Store, arms: Sequence[Arm], plan: Plan, workers: int, progress: Progress | None, clock: Clock
) -> int:
    """Run all cells; where time is limited, seed by seed as long as it lasts, but at least as many as words take.

    Returns:
        How many seeds there are.
    """
    if clock.budget is None:
        run_cells(store, arms, plan, workers, progress)
        return plan.seeds
    cells, longest = cells_of(arms, plan), 0.0
    for seed in range(plan.seeds):
        wanted = [cell for cell in cells if cell.seed == seed]
        complete = len(serving(wanted, store.cells())) == len(wanted)
        if not complete and seed >= FEWEST_SEEDS and not clock.allows(seed, longest):
            return seed
        began = time.perf_counter()
        _run(store, arms, plan, wanted, workers, progress, (seed * len(wanted), len(cells)))
        if not complete:
            took = time.perf_counter() - began
            longest = took if seed <= 1 else max(longest, took)  # processes have started in the first
    return plan.seeds


def run_cells(store: Store, arms: Sequence[Arm], plan: Plan, workers: int, progress: Progress | None) -> None:
    """Run the cells that are not complete, in whatever order."""
    cells = cells_of(arms, plan)
    _run(store, arms, plan, cells, workers, progress, (0, len(cells)))


def _run(
    store: Store,
    arms: Sequence[Arm],
    plan: Plan,
    cells: Sequence[Cell],
    workers: int,
    progress: Progress | None,
    place: tuple[int, int],
) -> None:
    """Run cells; ``place`` says how many were complete before these, and how many there are in all."""
    before, total = place
    done = serving(cells, store.cells())
    pending = [cell for cell in cells if cell.id not in done]
    ready = before + len(cells) - len(pending)
    if progress is not None:
        progress("training runs", ready, total)
    by_name = {arm.name: arm for arm in arms}
    for cell, records, seconds in in_processes(functools.partial(_work, by_name, plan), pending, workers):
        store.write_cell(cell, records, wall_s=seconds)
        ready += 1
        if progress is not None:
            progress("training runs", ready, total)


def _work(arms: Mapping[str, Arm], plan: Plan, cell: Cell) -> tuple[Cell, list[Record], float]:
    """Run one cell on one thread; leave the caller's global state as it was."""
    began = time.perf_counter()
    with streams_kept():
        for arm in arms.values():  # all, so that what an import sets does not depend on which cells a worker is given
            arm.factory.load()
        with one_thread(), settings_kept():
            records = list(run_cell(arms[cell.arm], plan, cell))
    return cell, records, time.perf_counter() - began
