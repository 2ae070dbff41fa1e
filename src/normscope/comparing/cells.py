"""The runs of a comparison: an arm at a seed and a learning rate is a cell, run as a whole or not at all."""

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from normscope._errors import UsageError
from normscope.comparing.arms import Arm
from normscope.comparing.plan import Plan, Progress
from normscope.comparing.reuse import run_of, serving
from normscope.comparing.training import run_cell
from normscope.modules.rng import streams_kept
from normscope.modules.settings import settings_kept
from normscope.records import Cell, Record, Store
from normscope.records.places import Folder
from normscope.running import (
    Executor,
    IncompleteRunError,
    LocalExecutor,
    Shard,
    Work,
    connected,
    one_thread,
    worker_count,
)
from normscope.stats.decide import FEWEST_SEEDS

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


@dataclass(frozen=True)
class Engine:
    """Where the cells of a comparison are run, and which of them.

    Attributes:
        executor: Where.
        shard: The share of the cells that is run here; None for all.
        workers: How many cells are run at a time, as far as it is known.
        gpus: GPUs that a cell needs.
    """

    executor: Executor
    shard: Shard | None
    workers: int
    gpus: int = 0

    def on(self, cpu: bool) -> "Engine":
        """Return the engine for models on the CPU or not: an accelerator of this machine takes one cell at a time."""
        if cpu:
            return self
        if isinstance(self.executor, LocalExecutor) and not self.executor.remote:
            return Engine(LocalExecutor(1), self.shard, 1, gpus=1)
        return replace(self, gpus=1)


@contextmanager
def engine_for(
    executor: str | Executor | None, workers: int | None, shard: str | Shard | None, budget: float | None
) -> Iterator[Engine]:
    """Yield the engine of a comparison, connected for as long as the block lasts.

    Args:
        executor: Where cells are run, as `normscope.running.executor_of` takes it.
        workers: Cells at a time; None for one per core of this machine.
        shard: The share of the cells; None for all.
        budget: Seconds that the comparison may take.

    Raises:
        UsageError: There is no such executor or share; or there is a share and a budget, which each share would spend
            on other seeds and steps.
    """
    if shard is not None and budget is not None:
        raise UsageError(
            "--shard goes without --budget: a budget chooses seeds and steps by the time that they take, so the shares "
            "would be of different runs; choose --seeds and --steps instead"
        )
    share = None if shard is None else Shard.of(shard)
    with connected(executor, workers) as where:
        yield Engine(where, share, worker_count(workers))


def run_seeds(
    store: Store, arms: Sequence[Arm], plan: Plan, engine: Engine, progress: Progress | None, clock: Clock
) -> int:
    """Run all cells; where time is limited, seed by seed as long as it lasts, but at least as many as words take.

    Returns:
        How many seeds there are.

    Raises:
        IncompleteRunError: Cells of other shards are missing.
    """
    if clock.budget is None:
        run_cells(store, arms, plan, engine, progress)
        return plan.seeds
    cells, longest = cells_of(arms, plan), 0.0
    for seed in range(plan.seeds):
        wanted = [cell for cell in cells if cell.seed == seed]
        complete = len(serving(wanted, store.cells())) == len(wanted)
        if not complete and seed >= FEWEST_SEEDS and not clock.allows(seed, longest):
            return seed
        began = time.perf_counter()
        _run(store, arms, plan, wanted, engine, progress, (seed * len(wanted), len(cells)))
        if not complete:
            took = time.perf_counter() - began
            longest = took if seed <= 1 else max(longest, took)  # processes have started in the first
    return plan.seeds


def run_cells(store: Store, arms: Sequence[Arm], plan: Plan, engine: Engine, progress: Progress | None) -> None:
    """Run the cells that are not complete, in whatever order.

    Raises:
        IncompleteRunError: Cells of other shards are missing.
    """
    cells = cells_of(arms, plan)
    _run(store, arms, plan, cells, engine, progress, (0, len(cells)))


def run_added(store: Store, arm: Arm, plan: Plan, engine: Engine, progress: Progress | None) -> None:
    """Run all cells of an arm that the runs have turned out to need.

    Only a share that finds the cells of all shares complete knows of the arm. So it runs its own share first, for
    another share may do the same, and then what is left: the other shares may have ended.
    """
    try:
        run_cells(store, [arm], plan, engine, progress)
    except IncompleteRunError:
        run_cells(store, [arm], plan, replace(engine, shard=None), progress)


def _run(
    store: Store,
    arms: Sequence[Arm],
    plan: Plan,
    cells: Sequence[Cell],
    engine: Engine,
    progress: Progress | None,
    place: tuple[int, int],
) -> None:
    """Run cells; ``place`` says how many were complete before these, and how many there are in all."""
    before, total = place
    done = serving(cells, store.cells())
    mine = list(cells) if engine.shard is None else engine.shard.share(cells)
    pending = [cell for cell in mine if cell.id not in done]
    ready = before + sum(cell.id in done for cell in cells)
    if progress is not None:
        progress("training runs", ready, total)
    doing = functools.partial(_work, {arm.name: arm for arm in arms}, plan)
    work = Work(doing, _name_of, folder=store.path if isinstance(store.place, Folder) else None)
    for cell, records, seconds in engine.executor.run(work, pending, gpus=engine.gpus):
        store.write_cell(cell, records, wall_s=seconds)
        ready += 1
        if progress is not None:
            progress("training runs", ready, total)
    if engine.shard is not None:
        engine.shard.require_all([[cell] for cell in mine], cells, serving(cells, store.cells()))


def _name_of(cell: Cell) -> str:
    return f"arm {cell.arm!r}, seed {cell.seed}, rate {cell.point['rate']:g}"


def _work(arms: Mapping[str, Arm], plan: Plan, cell: Cell) -> tuple[Cell, list[Record], float]:
    """Run one cell on one thread; leave the caller's global state as it was."""
    began = time.perf_counter()
    with streams_kept():
        for arm in arms.values():  # all, so that what an import sets does not depend on which cells a worker is given
            arm.factory.load()
        with one_thread(), settings_kept():
            records = list(run_cell(arms[cell.arm], plan, cell))
    return cell, records, time.perf_counter() - began
