"""The cells of a run as workers do them: which are run together, on which data, and by what name."""

import functools
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope._errors import DataError, UsageError
from normscope.records import Cell, Record
from normscope.records.json import canonical
from normscope.running import one_thread
from normscope.studies.experiment import AbstractExperiment
from normscope.usercode import users_code

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

#: A cell that was run, its records, and the seconds that it took.
Done = tuple[Cell, list[Record], float]
#: Seeds that a study may train at once: 0 to 4, 5 to 9 and so on, always all of them, since the last bits of a seed's
#: numbers may depend on its company. Of ten seeds that leaves two processes a half each.
SEEDS_AT_ONCE = 5


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


@dataclass(frozen=True)
class Source:
    """The data of a run, as a worker gets them.

    Attributes:
        name: Name or path, which a worker on this machine loads itself.
        fingerprint: Of the data that the run began with.
        content: The data themselves, for workers that may be on other machines.
    """

    name: str
    fingerprint: str
    content: "Dataset | None" = field(default=None, compare=False)

    def load(self) -> "Dataset":
        """Return the data.

        Raises:
            DataError: They cannot be read, or are not those that the run began with.
        """
        return _verified(self)


@functools.lru_cache(maxsize=2)
def _verified(source: Source) -> "Dataset":
    from normscope.studies.lab.data import load

    found = source.content or load(source.name)
    if source.content is None and found.fingerprint() != source.fingerprint:
        load.cache_clear()  # a worker process may have read the file for an earlier run
        found = load(source.name)
    if (here := found.fingerprint()) != source.fingerprint:
        raise DataError(
            f"{source.name}: a worker on {platform.node()} reads other data ({here}) than the run began with "
            f"({source.fingerprint}): records of two data sets are not replicates of one thing"
        )
    return found


def groups_of(study: AbstractExperiment, cells: Sequence[Cell]) -> list[list[Cell]]:
    """Return which cells are run together, in the order of the first of each."""
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells:
        key: tuple[Any, ...] = (cell.id,)
        if study.together(cell):
            key = (cell.arm, canonical(cell.point), cell.seed // SEEDS_AT_ONCE)
        groups.setdefault(key, []).append(cell)
    return list(groups.values())


def name_of(cells: Sequence[Cell]) -> str:
    """Return how cells that are run together are called in a sentence."""
    first, seeds = cells[0], ", ".join(str(cell.seed) for cell in cells)
    point = "".join(f", {key} {value}" for key, value in first.point.items())
    return f"arm {first.arm!r}, seed {seeds}{point} of {first.study}"


def run_group(study: AbstractExperiment, source: Source, device: str, cells: Sequence[Cell]) -> list[Done]:
    """Run one cell, or some of those that are run together, on one thread; leave the caller's global state as it was.

    The time of cells that are run together is shared out among those that were wanted.
    """
    from normscope.studies.lab.data import load as load_data

    began = time.perf_counter()
    dataset = source.load()
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
            if lacking := wanted - {cell.id for cell, _ in found}:
                seeds = ", ".join(str(cell.seed) for cell in cells if cell.id in lacking)
                raise UsageError(f"run_cells() gives no records of seed {seeds}: give each cell that it takes")
        else:
            found = [(cell, list(study.run_cell(cell, dataset, device))) for cell in cells]
    if study.SOURCE_PATH and dataset.fingerprint() != source.fingerprint:
        _verified.cache_clear()
        load_data.cache_clear()
        raise UsageError(f"running {study.CODE} changed its data in place, which other cells read too: change a copy")
    seconds = (time.perf_counter() - began) / len(found)
    return [(cell, records, seconds) for cell, records in found]
