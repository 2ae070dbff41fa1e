"""Run a study: its cells over processes, each complete cell into the store, then the verdict."""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from normscope._errors import DataError, StoreError, UsageError
from normscope.plots import Figure, Table
from normscope.records import Cell, Outcome, Store, Verdict, driven, provenance
from normscope.records.addresses import place_of
from normscope.records.places import Folder
from normscope.running import Executor, Shard, Work, connected, executor_of
from normscope.stats import LEVEL, TWO_LOOKS_LEVEL
from normscope.studies.cells import Done, Source, groups_of, name_of, own_code, run_group
from normscope.studies.evidence import Evidence
from normscope.studies.experiment import AbstractExperiment, Progress
from normscope.studies.foreign_cells import own_cells

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

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
        counts = Counter(cell.seed for cell in own_cells(self.store, config))
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
        name = config["data"]["name"]
        data = "" if name == self.study.DATA else f" --data {name}"
        return (
            f"normscope study run {self.study.CODE} --preset {config['preset']} --seeds {seeds or self.asked()[0]}"
            f"{data} --device {config['device']}{extend}"
        )


def run(
    study: AbstractExperiment,
    *,
    out: str | Path,
    seeds: int = 10,
    preset: str = "quick",
    data: str | None = None,
    device: str = "cpu",
    workers: int | None = None,
    executor: str | Executor | None = None,
    shard: str | Shard | None = None,
    extend: bool = False,
    look_twice: bool = True,
    progress: Progress | None = None,
) -> Verdict:
    """Run a study, or what of it is not yet complete, and judge it.

    The records are the same, bit for bit, whatever ``workers``, ``executor``, ``shard`` and ``seeds`` are and however
    often the run was interrupted. Where a study trains several seeds at once, it trains seeds 0 to 4, 5 to 9 and so on,
    though fewer were asked for, and what was not is not kept; records differ from those of a seed alone by rounding.

    Args:
        study: The study.
        out: Folder of runs; this one goes to ``out/SLUG``. A run of the same configuration there is continued.
        seeds: Number of replicates, seeds 0 to ``seeds - 1``.
        preset: Which of the study's presets.
        data: Name or path of the data, as ``lab.data.load`` takes it; None for the study's own (``DATA``).
        device: ``"cpu"`` or ``"cuda"``.
        workers: Processes; None for one per core (one in all on a GPU).
        executor: Where cells are computed: ``"local"``, ``"ray"``, ``"slurm"``, with options, or an executor
            (`normscope.running`). The records are the same.
        shard: ``"2/3"`` runs the second of three shares of the cells; each share may run anywhere, at any time.
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
        IncompleteRunError: The shard has run its cells, but cells of other shards are missing.
    """
    options: dict[str, Any] = {"seeds": seeds, "preset": preset, "data": data, "device": device, "workers": workers}
    refuse([study], out=out, executor=executor, shard=shard, **options)
    dataset = study.data_named(data)
    level = TWO_LOOKS_LEVEL if extend else LEVEL
    share = None if shard is None else Shard.of(shard)
    with connected(executor, workers, device) as where:
        store = Store.create(Path(out) / study.CODE, _config(study, preset, dataset, device, level))
        source = Source(dataset.name, dataset.fingerprint(), dataset if where.remote else None)
        doing = functools.partial(run_group, study, source, device)
        work = Work(doing, name_of, folder=store.path if isinstance(store.place, Folder) else None)
        look = _Look(Run(study, store), preset, dataset, device, where, work, share, progress)
        with driven(store.place, share):
            verdict = look.at(seeds)
            if extend and look_twice and verdict.outcome is Outcome.UNCLEAR:
                verdict = look.at(2 * seeds)
    return verdict


def _config(study: AbstractExperiment, preset: str, dataset: "Dataset", device: str, level: float) -> dict[str, Any]:
    """Return what determines the numbers of a run."""
    config = {
        "study": study.CODE,
        "version": study.VERSION,
        "preset": preset,
        "settings": study.settings(preset),
        "data": {"name": dataset.name, "fingerprint": dataset.fingerprint()},
        "device": device,
        "level": level,
        # Records of two versions are not replicates of one thing: such a run is refused, not continued.
        "versions": {name: provenance.version(name) for name in ("normscope", "torch")},
    }
    if study.SOURCE_FILE:
        # The rule stands before the run: records made under another text of the file are not continued or judged anew.
        config["source_file"] = study.SOURCE_FILE
    return config


@dataclass(frozen=True)
class _Look:
    """What is fixed for all looks at a run."""

    run: Run
    preset: str
    dataset: "Dataset"
    device: str
    executor: Executor
    work: Work[Sequence[Cell], list[Done]]
    shard: Shard | None
    progress: Progress | None

    def at(self, count: int) -> Verdict:
        """Run the cells of so many seeds that are not complete, or of them those of a shard, and judge the seeds.

        Raises:
            IncompleteRunError: Cells of other shards are missing.
        """
        study, store = self.run
        with own_code(study, "listing the cells of"):
            wanted = study.cells(self.preset, range(count), self.dataset, self.device)
        with own_code(study, "grouping the cells of"):
            groups = groups_of(study, wanted)
        mine = groups if self.shard is None else self.shard.share(groups)
        done = store.completed()
        pending = [left for group in mine if (left := [cell for cell in group if cell.id not in done])]
        ready = sum(cell.id in done for cell in wanted)
        if self.progress is not None:
            self.progress(ready, len(wanted), None)
        for group in self.executor.run(self.work, pending, gpus=int(self.device != "cpu")):
            for cell, records, seconds in group:
                store.write_cell(cell, records, wall_s=seconds)
                ready += 1
                if self.progress is not None:
                    self.progress(ready, len(wanted), cell)
        if self.shard is not None:
            self.shard.require_all(mine, wanted, store.completed())
        with own_code(study, "judging"):
            return study.judged(self.run.evidence(range(count)))


def refuse(
    chosen: Sequence[AbstractExperiment],
    *,
    out: str | Path,
    seeds: int = 10,
    preset: str = "quick",
    data: str | None = None,
    device: str = "cpu",
    workers: int | None = None,
    executor: str | Executor | None = None,
    shard: str | Shard | None = None,
    extend: bool = False,
) -> None:
    """Refuse what cannot be run, before anything is: what is wrong for all studies is said once.

    Args:
        chosen: The studies.
        out: Folder of runs; it is made.
        seeds: This and the rest are as ``run`` takes them.
        preset: Of every study.
        data: Name or path; None for each study's own.
        device: Where.
        workers: Processes.
        executor: Where cells are computed.
        shard: Which share of them.
        extend: Never wrong.

    Raises:
        UsageError: As ``run``.
        DataError: As ``run``.
        StoreError: The folder cannot be made.
    """
    if seeds < 1:
        raise UsageError(f"--seeds must be at least 1, got {seeds}")
    for study in chosen:
        settings = study.settings(preset)
        if study.SOURCE_PATH:
            with own_code(study, "listing the contrasts of"):
                study.foresee(settings)
    if shard is not None:
        Shard.of(shard)
    executor_of(executor, workers, device)
    for study in chosen:
        study.data_named(data)
    place_of(out).prepare("--out")


def config_of(store: Store, *, required: bool = True) -> Mapping[str, Any]:
    """Return the configuration of a run.

    Raises:
        StoreError: The folder holds no run of a study, though ``required`` says so.
    """
    if required and "study" not in store.config:
        raise StoreError(f"{store.place}: not a run of a study")
    return store.config
