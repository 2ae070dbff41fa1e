"""Run a study: its cells over processes, each complete cell into the store, then the verdict."""

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from normscope._errors import DataError, StoreError, UsageError
from normscope.plots import Figure, Table
from normscope.records import Cell, Outcome, Record, Store, Verdict, provenance
from normscope.records.addresses import place_of
from normscope.records.json import canonical
from normscope.stats import LEVEL, TWO_LOOKS_LEVEL
from normscope.studies.evidence import Evidence
from normscope.studies.experiment import AbstractExperiment, Progress
from normscope.studies.workers import in_processes, one_thread, worker_count
from normscope.usercode import users_code

_Done = tuple[Cell, list[Record], float]
#: Seeds that a study may train at once: 0 to 4, 5 to 9 and so on, always all of them, since the last bits of a seed's
#: numbers may depend on its company. Of ten seeds that leaves two processes a half each.
SEEDS_AT_ONCE = 5
_ALPHA = 0.05  # chance of any false word that is kept over studies judged together


class Run(NamedTuple):
    """A run of one study as it lies in a folder, to judge and draw again.

    Attributes:
        study: The study.
        store: Its records.
    """

    study: AbstractExperiment
    store: Store

    def evidence(self, seeds: Sequence[int] | None = None) -> Evidence:
        """Return the records of the complete seeds.

        Args:
            seeds: Only these; None for all that are complete.

        Raises:
            DataError: Not one seed is complete.
        """
        config = config_of(self.store)
        points = len(self.study.points(config["settings"]))
        counts: dict[int, int] = {}
        for cell in self.store.cells():
            counts[cell.seed] = counts.get(cell.seed, 0) + 1
        whole = sorted(seed for seed, count in counts.items() if count >= points and (seeds is None or seed in seeds))
        if not whole:
            raise DataError(f"{self.study.CODE}: no seed is complete yet: run it again to go on where it stopped")
        import polars as pl

        frame = self.store.frame().filter(pl.col("seed").is_in(whole))
        return Evidence(frame, config["settings"], tuple(whole), config["level"], config["data"]["name"])

    def verdict(self) -> Verdict:
        """Judge all complete seeds."""
        with own_code(self.study, "judging"):
            return self.study.judged(self.evidence())

    def figures(self) -> Sequence[Figure]:
        """Draw the study's figures from all complete seeds."""
        with own_code(self.study, "drawing"):
            return self.study.drawn(self.evidence())

    def tables(self) -> Sequence[Table]:
        """Make the study's tables from all complete seeds."""
        with own_code(self.study, "tabulating"):
            return self.study.tabulated(self.evidence())

    def asked(self, *, together: int = 1) -> tuple[int, ...]:
        """Return the numbers of seeds that, asked for, come to the seeds that are here.

        One, unless the run could be extended: then it may have been asked for as many, if these decide, or for half as
        many, if the first half did not.

        Args:
            together: How many studies are judged together: what decides alone may not decide after Holm's correction.
        """
        seeds = 1 + max((cell.seed for cell in self.store.cells()), default=0)
        if config_of(self.store)["level"] != TWO_LOOKS_LEVEL:
            return (seeds,)
        half = (seeds // 2,) if seeds % 2 == 0 and self._leave_open(seeds // 2, together) else ()
        return half if half and self._leave_open(seeds) else (seeds, *half)

    def _leave_open(self, seeds: int, together: int = 1) -> bool:
        """Return whether the first seeds leave a study unclear, or may do so among others."""
        try:
            with own_code(self.study, "judging"):
                found = self.study.judged(self.evidence(range(seeds)))
        except DataError:  # an interrupted run, of which none of these is complete
            return False
        corrected = min(1.0, together * (found.p_value or 0.0))  # the most that Holm's correction makes of it
        return found.outcome is Outcome.UNCLEAR or (found.outcome.decided and corrected > _ALPHA)

    def command(self, seeds: int | None = None) -> str:
        """Return the command that runs the study again like this.

        Args:
            seeds: One of `asked`; its first if left out.
        """
        config = config_of(self.store)
        extend = " --extend" if config["level"] == TWO_LOOKS_LEVEL else ""
        return (
            f"normscope study run {self.study.CODE} --preset {config['preset']} --seeds {seeds or self.asked()[0]}"
            f" --data {config['data']['name']} --device {config['device']}{extend}"
        )


@contextmanager
def own_code(study: AbstractExperiment, doing: str) -> Iterator[None]:
    """Have what a user's own study raises end in one line with the user's file and line.

    Args:
        study: Of a study of the package errors pass as they are.
        doing: What is done with the study: ``"judging"``.
    """
    if not study.SOURCE_PATH:
        yield
        return
    with users_code(f"{doing} {study.CODE}", Path(study.SOURCE_PATH)):
        yield


def run(
    study: AbstractExperiment,
    *,
    out: str | Path,
    seeds: int = 10,
    preset: str = "quick",
    data: str = "digits",
    device: str = "cpu",
    workers: int | None = None,
    extend: bool = False,
    look_twice: bool = True,
    progress: Progress | None = None,
) -> Verdict:
    """Run a study, or what of it is not yet complete, and judge it.

    The records are the same, bit for bit, whatever ``workers`` and ``seeds`` are and however often the run was
    interrupted. Where a study trains several seeds at once, it trains seeds 0 to 4, 5 to 9 and so on, though fewer were
    asked for, and what was not is not kept; records differ from those of a seed alone by rounding.

    Args:
        study: The study.
        out: Folder of runs; this one goes to ``out/SLUG``. A run of the same configuration there is continued.
        seeds: Number of replicates, seeds 0 to ``seeds - 1``.
        preset: Which of the study's presets.
        data: Name or path of the data, as ``lab.data.load`` takes it.
        device: ``"cpu"`` or ``"cuda"``.
        workers: Processes; None for one per core (one in all on a GPU).
        extend: Whether to run as many seeds again if the verdict is unclear. Both looks are then made at the
            level 0.971, so that the chance of a wrong verdict stays at 5 %.
        look_twice: Whether the second look is taken here; if not, who judges several studies together takes it, by
            asking for twice the seeds.
        progress: Called after every cell with (cells complete, cells in all, cell); first with None for the cell.

    Returns:
        The verdict over the seeds asked for.

    Raises:
        UsageError: An unknown preset or device, or numbers that make no sense.
        DataError: The data cannot be read.
        StoreError: The folder cannot be written, or holds a run of another configuration.
        NonFiniteError: The data make the loss infinite before any training.
    """
    from normscope.studies.lab.data import load as load_data

    refuse([study], out=out, seeds=seeds, preset=preset, data=data, device=device, workers=workers)
    settings = study.settings(preset)
    workers = worker_count(workers, device)
    dataset = load_data(data)
    level = TWO_LOOKS_LEVEL if extend else LEVEL
    config = {
        "study": study.CODE,
        "version": study.VERSION,
        "preset": preset,
        "settings": settings,
        "data": {"name": data, "fingerprint": dataset.fingerprint()},
        "device": device,
        "level": level,
        # Records of two versions are not replicates of one thing: such a run is refused, not continued.
        "versions": {name: provenance.version(name) for name in ("normscope", "torch")},
    }
    if study.SOURCE_FILE:
        # The rule stands before the run: records made under another text of the file are not continued or judged anew.
        config["source_file"] = study.SOURCE_FILE
    store = Store.create(Path(out) / study.CODE, config)

    def look(count: int) -> Verdict:
        with own_code(study, "listing the cells of"):
            wanted = study.cells(preset, range(count), dataset, device)
        done = store.completed()
        pending = [cell for cell in wanted if cell.id not in done]
        ready = len(wanted) - len(pending)
        if progress is not None:
            progress(ready, len(wanted), None)
        with own_code(study, "grouping the cells of"):
            groups = groups_of(study, pending)
        doing = functools.partial(work, study, data=data, device=device)
        for group in in_processes(doing, groups, workers):
            for cell, records, seconds in group:
                store.write_cell(cell, records, wall_s=seconds)
                ready += 1
                if progress is not None:
                    progress(ready, len(wanted), cell)
        with own_code(study, "judging"):
            return study.judged(Run(study, store).evidence(range(count)))

    verdict = look(seeds)
    if extend and look_twice and verdict.outcome is Outcome.UNCLEAR:
        verdict = look(2 * seeds)
    return verdict


def refuse(
    chosen: Sequence[AbstractExperiment],
    *,
    out: str | Path,
    seeds: int = 10,
    preset: str = "quick",
    data: str = "digits",
    device: str = "cpu",
    workers: int | None = None,
    extend: bool = False,
) -> None:
    """Refuse what cannot be run, before anything is: what is wrong for all studies is said once.

    Args:
        chosen: The studies.
        out: Folder of runs; it is made.
        seeds: This and the rest are as ``run`` takes them.
        preset: Of every study.
        data: Name or path.
        device: Where.
        workers: Processes.
        extend: Never wrong.

    Raises:
        UsageError: As ``run``.
        DataError: As ``run``.
        StoreError: The folder cannot be made.
    """
    from normscope.studies.lab.data import load as load_data

    if seeds < 1:
        raise UsageError(f"--seeds must be at least 1, got {seeds}")
    for study in chosen:
        settings = study.settings(preset)
        if study.SOURCE_PATH:
            with own_code(study, "listing the contrasts of"):
                study.foresee(settings)
    worker_count(workers, device)
    load_data(data)
    place_of(out).prepare("--out")


def config_of(store: Store, *, required: bool = True) -> Mapping[str, Any]:
    """Return the configuration of a run.

    Raises:
        StoreError: The folder holds no run of a study, though ``required`` says so.
    """
    config: Mapping[str, Any] = store.config
    if required and "study" not in config:
        raise StoreError(f"{store.path}: not a run of a study")
    return config


def groups_of(study: AbstractExperiment, cells: Sequence[Cell]) -> list[list[Cell]]:
    """Return which cells are run together, in the order of the first of each."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        key: tuple[Any, ...] = (cell.id,)
        if study.together(cell):
            key = (cell.arm, canonical(cell.point), cell.seed // SEEDS_AT_ONCE)
        groups.setdefault(key, []).append(cell)
    return list(groups.values())


def work(study: AbstractExperiment, cells: Sequence[Cell], data: str, device: str) -> list[_Done]:
    """Run one cell, or some of those that are run together, on one thread; leave the caller's global state as it was.

    The time of cells that are run together is shared out among those that were wanted.
    """
    from normscope.studies.lab.data import load as load_data

    began = time.perf_counter()
    dataset = load_data(data)
    with one_thread(), own_code(study, f"running arm {cells[0].arm!r} of"):
        if study.together(cells[0]):
            first = cells[0].seed // SEEDS_AT_ONCE * SEEDS_AT_ONCE
            company = [replace(cells[0], seed=seed) for seed in range(first, first + SEEDS_AT_ONCE)]
            wanted = {cell.id for cell in cells}
            found = [
                (cell, list(records))
                for cell, records in study.run_cells(company, dataset, device)
                if cell.id in wanted
            ]
        else:
            found = [(cell, list(study.run_cell(cell, dataset, device))) for cell in cells]
    seconds = (time.perf_counter() - began) / len(found)
    return [(cell, records, seconds) for cell, records in found]
