"""Names of the cells of open-ended runs: each scope claims a name of its own in the run's folder.

A claim is the file ``scope-CELL.json``. It is made by an operation that fails if the file exists, so of several
processes that want one name each gets another.
"""

import json
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from normscope._errors import DataError, UsageError, shown
from normscope.records import files as _files
from normscope.records.json import digest, in_words, loads, plain
from normscope.records.parts import Part, read_part, read_parts
from normscope.records.reading import text_of_file

if TYPE_CHECKING:
    import polars as pl

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")
_CELL = re.compile(r"(?P<name>.+?)(\.run(?P<run>[1-9]\d*))?(\.rank(?P<rank>\d+))?")


@dataclass(frozen=True, slots=True)
class CellClaim:
    """A cell of an open-ended run, as its scope claimed it.

    Attributes:
        cell: Name of the cell.
        name: Name that was asked for.
        run: Which run under that name, from 1.
        rank: Rank of the process among several; None for a process of its own.
        ranks: How many processes train together; None where it is not known.
        pid: Number of the process on its machine; 0 where it is not known.
        host: Name of the machine.
        started: Time of the claim, in seconds since 1970.
        facts: What the scope said of itself.
    """

    cell: str
    name: str
    run: int
    rank: int | None
    ranks: int | None = None
    pid: int = 0
    host: str = ""
    started: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def process_is_gone(self) -> bool:
        """Whether the process is known to have ended; False where it runs on another machine or is not known."""
        return self.pid > 0 and self.host == socket.gethostname() and not _files.alive(self.pid)


def require_cell_name(name: str) -> str:
    """Return the name if it can name a cell.

    Raises:
        UsageError: It is a path, empty, longer than 100 characters, begins with a dot, or has characters other than
            letters, digits, ``_``, ``.`` and ``-``.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(
            f"cell={shown(name)[:120]} is no name for a cell: use at most 100 of the letters A-Z and a-z, digits, "
            "'_', '-' and '.', with no dot at the beginning (a folder is given as record_to)"
        )
    return name


def claim_cell(
    folder: str | os.PathLike[str],
    name: str,
    rank: int | None = None,
    *,
    ranks: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> str:
    """Claim a cell in a run's folder that no other scope has, now or earlier.

    The first run gets the name itself, the second ``NAME.run2``; processes that train together get ``NAME.rank0``,
    ``NAME.run2.rank0``.

    Args:
        folder: The run's folder; it exists.
        name: The name that is wanted.
        rank: Rank of this process; None if it trains alone.
        ranks: How many processes train together. With it all processes of one run get the same number of the run even
            if an earlier run had more or fewer processes.
        facts: What is kept in the claim: the model's class, the probes, and the like. Values without a JSON form are
            kept as text.

    Returns:
        The name of the cell.

    Raises:
        UsageError: The name cannot name a cell.
        StoreError: The folder cannot be written.
    """
    require_cell_name(name)
    place = Path(folder)
    there = [claim for claim in claims(place) if claim.name == name]
    unclaimed = _unclaimed_cells(place)
    without_claim = any(_parsed(cell)[0] == name for cell in unclaimed)
    run = max([int(without_claim), *(claim.run for claim in there if claim.rank == rank)]) + 1
    while True:
        cell = _cell(name, run, rank)
        fits = all(claim.ranks == ranks for claim in there if claim.run == run)
        if fits and cell not in unclaimed:
            made = CellClaim(cell, name, run, rank, ranks, **_process(), facts=facts or {})
            if _files.write_text(_path(place, cell), _text(made), replace=False):
                return cell
        run += 1


def claims(folder: str | os.PathLike[str]) -> list[CellClaim]:
    """Return all claims in a run's folder, by name, run and rank; none if there is no such folder.

    Of a claim that cannot be read the file's name tells what it tells.
    """
    found = [_read(path) for path in Path(folder).glob("scope-*.json")]
    return sorted(found, key=lambda claim: (claim.name, claim.run, -1 if claim.rank is None else claim.rank))


def last_cell(folder: str | os.PathLike[str], name: str, rank: int | None = None) -> str | None:
    """Return the cell that was last claimed under a name by a rank; None if there is none."""
    require_cell_name(name)
    mine = [claim for claim in claims(folder) if claim.name == name and claim.rank == rank]
    if mine:
        return max(mine, key=lambda claim: claim.run).cell
    old = _cell(name, 1, rank)
    return old if old in _unclaimed_cells(Path(folder)) else None


def take_up_cell(folder: str | os.PathLike[str], name: str, rank: int | None = None) -> str | None:
    """Take up the cell that was last claimed under a name by a rank, for a training that goes on in it.

    The claim says from now on that this process records into the cell.

    Returns:
        The cell; None if there is none.

    Raises:
        StoreError: The folder cannot be written.
    """
    cell = last_cell(folder, name, rank)
    if cell is not None:
        place = Path(folder)
        old = next((claim for claim in claims(place) if claim.cell == cell), None)
        if old is None:  # of an older version
            old = CellClaim(cell, name, 1, rank)
        _files.write_text(_path(place, cell), _text(replace(old, **_process())))
    return cell


def last_step(folder: str | os.PathLike[str], cell: str) -> int | None:
    """Return the last step that has a record in a cell; None if the cell has no records.

    Raises:
        StoreError: A part is damaged.
    """
    import polars as pl

    def last(frame: "pl.DataFrame") -> int | None:
        return cast("int | None", frame.filter(pl.col("cell") == cell)["step"].max())

    steps = _of_each_part(Path(folder), ["cell", "step"], last)
    return max((step for step in steps if step is not None), default=None)


def _unclaimed_cells(folder: Path) -> set[str]:
    """Return the cells in parts of an older version, whose scopes made no claims."""
    found = _of_each_part(folder, ["cell"], lambda frame: set(frame["cell"].unique().to_list()), claimed=False)
    return set().union(*found)


def _of_each_part(
    folder: Path, columns: list[str], look: "Callable[[pl.DataFrame], T]", *, claimed: bool = True
) -> list[T]:
    """Return what ``look`` finds in each part of the folder, or in those without a claim alone."""
    import polars as pl

    def read(parts: list[Part]) -> list[T]:
        return [
            look(read_part(part, columns).with_columns(pl.col("cell").cast(pl.String)))
            for part in parts
            if claimed or not part.claimed
        ]

    return read_parts(folder, read)


def _process() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": time.time()}


def _path(folder: Path, cell: str) -> Path:
    return folder / f"scope-{cell}.json"


def _text(claim: CellClaim) -> str:
    told = json.loads(json.dumps(plain(claim, in_words), default=str))  # values without a JSON form are kept as text
    return json.dumps(told | {"check": digest(told)}, indent=1) + "\n"


def _read(path: Path) -> CellClaim:
    cell = path.name[len("scope-") : -len(".json")]
    try:
        kept = loads(text_of_file(path))
        check = kept.pop("check", None)  # claims of older versions have none
        claim = CellClaim(**kept)
        whole = (
            claim.cell == cell
            and isinstance(claim.name, str)
            and isinstance(claim.facts, dict)
            and all(type(number) is int for number in (claim.run, claim.pid))
            and all(number is None or type(number) is int for number in (claim.rank, claim.ranks))
            and isinstance(claim.started, float)
            and check in (None, digest(kept))
        )
        if whole:
            return claim
    except (OSError, ValueError, TypeError, AttributeError, UsageError, DataError):
        pass
    name, run, rank = _parsed(cell)
    return CellClaim(cell, name, run, rank)


def _cell(name: str, run: int, rank: int | None) -> str:
    return name + (f".run{run}" if run > 1 else "") + ("" if rank is None else f".rank{rank}")


def _parsed(cell: str) -> tuple[str, int, int | None]:
    """Return name, run and rank of a cell, as far as its name tells."""
    match = _CELL.fullmatch(cell)
    if match is None:
        return cell, 1, None
    return match["name"], int(match["run"] or 1), None if match["rank"] is None else int(match["rank"])
