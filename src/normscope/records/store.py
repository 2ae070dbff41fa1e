"""Where records are kept: a run folder on disk.

A run is a folder::

    run.json              configuration, its hash, provenance
    part-CELL.parquet     all records of one cell
    cell-CELL.json        that cell's configuration and wall time: the mark that the cell is complete
    scope-CELL.json       the claim of an open-ended run on the name of its cell
    scope-....parquet     records of open-ended runs (see `normscope.records.parts`)

Every file is written whole under a temporary name and renamed, the mark after its part. So at any moment a reader, or
the next start after a crash, finds whole cells and nothing half: a part without its mark is as good as absent. Several
processes may write different cells into one run at once.
"""

import contextlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from normscope._errors import NormscopeError, StoreError, UsageError
from normscope.records import _table, files as _files
from normscope.records.cell import Cell
from normscope.records.json import canonical_form, digest
from normscope.records.parts import Part, PartWriter, delete_covered, read_parts
from normscope.records.provenance import collect
from normscope.records.record import Record
from normscope.records.run_file import FORMAT, UnreadableRunError, differences, read_run, text_of

if TYPE_CHECKING:
    import polars as pl

#: Records that wait for a disk that cannot be written, at most; beyond that the oldest are dropped.
MOST_WAITING = 500_000

_SHARE = 0.02  # of a training's time, at most, goes into flushes
_LONGEST_PAUSE = 60.0
_CLAIMED = "how the scope was made"


class Store:
    """A run on disk. Make one with `create`, read one with `open`.

    Attributes:
        path: The run's folder.
        config: Configuration of the run, plain JSON.
        provenance: Versions, machine, commit and time of the run's start, as `collect` gave them.
        lost: How many appended records were dropped since the store was opened, because they could not be written.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], *, writable: bool, rows: int = 20_000, seconds: float = 2.0):
        self.path = path
        self.config: Mapping[str, Any] = MappingProxyType(run["config"])
        self.provenance: Mapping[str, Any] = MappingProxyType(run["provenance"])
        self._run = run
        self._writable = writable
        self._rows, self._seconds = rows, seconds
        self.lost = 0
        self._buffer: list[Record] = []
        self._writer = PartWriter(path, _table.write, _table.read)
        self._due = -math.inf  # the first records are written at once, for who looks on
        self._took = 0.0  # seconds of the last flush
        self._failures = 0
        self._process = os.getpid()

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], config: Mapping[str, Any], *, rows: int = 20_000, seconds: float = 2.0
    ) -> "Store":
        """Start a run in a folder, or take up the run that lies there if its configuration is the same.

        Scopes share a folder whatever their configurations are, for each has a cell of its own. Left-over files of
        processes that died are removed.

        Args:
            path: The run's folder; made if need be.
            config: Everything that determines the run's numbers, as JSON values.
            rows: Appended records after which a part is flushed.
            seconds: Seconds after a flush at which the next append flushes again; more where the disk is so slow that
                flushes would take more than 2 % of the time.

        Returns:
            The store, open for writing.

        Raises:
            StoreError: The folder holds a run of another configuration (the message says which keys differ), is a file,
                cannot be written, or its ``run.json`` is damaged.
            UsageError: The configuration has no JSON form.
        """
        folder = Path(path)
        wanted = canonical_form(config)
        if not isinstance(wanted, dict):
            raise UsageError("a run's configuration is a mapping of names to values")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise StoreError(f"{folder} is, or lies below, a file; give a folder for the run") from None
        except OSError as error:
            raise StoreError(f"cannot make {folder}: {error.strerror}; choose another folder") from None
        if not (folder / "run.json").exists():
            run = {"format": FORMAT, "config": wanted, "config_hash": digest(wanted), "provenance": collect()}
            # Of several processes that start at once the first wins; the others find their own configuration there.
            _files.write_text(folder / "run.json", text_of(run), replace=False)
        there = read_run(folder)
        of_scopes = there["config"].get("kind") == wanted.get("kind") == "scope"
        option = "record_to" if wanted.get("kind") == "scope" else "--out"
        if there["config_hash"] != digest(wanted) and not of_scopes:
            raise StoreError(
                f"{folder} holds a run with another configuration ({differences(there['config'], wanted)}); "
                f"choose another {option}, or delete that folder"
            )
        if not os.access(folder, os.W_OK):
            raise StoreError(f"{folder} cannot be written; choose another {option}")
        _files.clean(folder)
        delete_covered(folder)
        if of_scopes:
            import polars  # noqa: F401  # now, not in the first step that is read
        return cls(folder, there, writable=True, rows=rows, seconds=seconds)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Store":
        """Open a run for reading; nothing in the folder is touched.

        Raises:
            StoreError: There is no run, or its ``run.json`` is damaged.
        """
        folder = Path(path)
        if not folder.exists():
            raise StoreError(f"{folder} does not exist; give the folder of a run")
        if not folder.is_dir():
            raise StoreError(f"{folder} is a file; give the folder of a run")
        return cls(folder, read_run(folder), writable=False)

    @classmethod
    def open_scope(cls, path: str | os.PathLike[str]) -> tuple["Store", list[str]]:
        """Open a run for reading, that of a scope also if its ``run.json`` is missing or damaged.

        Returns:
            The store, and sentences on damaged files beside the records.

        Raises:
            StoreError: There is no run, or a run of a study whose ``run.json`` is damaged.
        """
        folder, said = Path(path), []
        try:
            store = cls.open(folder)
        except UnreadableRunError:
            if not any(folder.glob("scope-*.parquet")):
                raise
            store = cls(folder, {"config": {"kind": "scope"}, "provenance": {}}, writable=False)
            state = "damaged" if (folder / "run.json").exists() else "missing"
            said.append(
                f"{folder / 'run.json'} is {state}: the records are read all the same, what made them is unknown"
            )
        for claim in sorted(folder.glob("scope-*.json")):
            try:
                whole = isinstance(json.loads(claim.read_text(encoding="utf-8")), dict)
            except (OSError, ValueError):
                whole = False
            if not whole:
                said.append(f"{claim} is damaged: the records stand without it, but {_CLAIMED} is unknown")
        return store, said

    # -- writing ------------------------------------------------------------------------------------------------------

    def write_cell(self, cell: Cell, records: Iterable[Record], *, wall_s: float) -> bool:
        """Write a finished cell, whole or not at all.

        Args:
            cell: The cell.
            records: All its records; each names the cell's id as its cell.
            wall_s: Seconds the cell took; kept beside the records, never among them.

        Returns:
            False if the cell was complete before: then nothing is written.

        Raises:
            StoreError: The store is open for reading only, the folder cannot be written, or a record names another
                cell.
        """
        self._must_be_writable()
        part, mark = self._part(cell.id), self._mark(cell.id)
        if mark.exists() and part.exists():
            return False
        frame = _table.from_records(records)
        others = set(frame["cell"].unique().cast(str)) - {cell.id}
        if others:
            raise StoreError(
                f"records of {min(others)!r} were to be written as cell {cell.id}; give the probes cell={cell.id!r}"
            )
        _files.write_whole(part, lambda temporary: _table.write(frame, temporary))
        text = json.dumps({"cell": json.loads(cell.to_json()), "wall_s": float(wall_s), "records": frame.height}) + "\n"
        _files.write_text(mark, text)
        return True

    def append(self, records: Iterable[Record]) -> None:
        """Add records of an open-ended run; they reach the disk at the next flush.

        A flush comes by itself at the first append, later after ``rows`` records or ``seconds`` seconds (see
        `create`), at `frame`, `sql` and `close`, and at the end of a ``with`` block. After a flush that failed, the
        records wait in memory, at most `MOST_WAITING` of them, and the next try comes after a pause.

        Raises:
            StoreError: The store is open for reading only, or a flush failed. The store can be used on.
        """
        self._must_be_writable()
        self._leave_to_the_parent()
        self._buffer.extend(records)
        if (surplus := len(self._buffer) - MOST_WAITING) > 0:
            del self._buffer[:surplus]
            self.lost += surplus
        if len(self._buffer) >= self._rows and not self._failures:
            self.flush()
        else:
            self.flush_if_due()

    def flush_if_due(self) -> None:
        """Flush if the time has come and records wait: to be called where no record may come for a while.

        Raises:
            StoreError: The folder cannot be written; the records stay, for another try.
        """
        if self._buffer and time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Write the records appended so far as a part of their own.

        Raises:
            StoreError: The folder cannot be written; the records stay, for another try. What is no record is dropped.
        """
        self._leave_to_the_parent()
        if not self._buffer:
            return
        self._must_be_writable()
        began = time.monotonic()
        try:
            self._write()
        except StoreError as error:
            self._failures += 1
            self._due = time.monotonic() + min(self._seconds * 2**self._failures, _LONGEST_PAUSE)
            lost = f"; {self.lost} were dropped" if self.lost else ""
            raise StoreError(f"{error} ({len(self._buffer)} records wait in memory for another try{lost})") from error
        self._buffer.clear()
        self._failures = 0
        now = time.monotonic()
        # The faster of the last two flushes counts: a single slow flush tells nothing, and the first imports Polars.
        self._due = now + max(self._seconds, min(now - began, self._took, _LONGEST_PAUSE * _SHARE) / _SHARE)
        self._took = now - began

    def _write(self) -> None:
        """Write the buffer, whatever goes wrong is a StoreError."""
        if not self.path.is_dir():
            raise StoreError(f"cannot write into {self.path}: the folder is gone; make it again")
        try:
            frame = _table.from_records(self._buffer)
        except StoreError:
            kept = [record for record in self._buffer if _table.is_record(record)]
            self.lost += len(self._buffer) - len(kept)
            self._buffer = kept
            raise
        try:
            if not (self.path / "run.json").exists():  # the folder was made anew
                _files.write_text(self.path / "run.json", text_of(self._run), replace=False)
            self._writer.write(frame)
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(f"cannot write into {self.path}: {type(error).__name__}: {error}") from error

    def _leave_to_the_parent(self) -> None:
        """Forget, in a forked process, the records that its parent will write."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self._buffer = []

    close = flush

    @property
    def unwritten(self) -> list[Record]:
        """The appended records that have not reached the disk."""
        return list(self._buffer)

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    # -- reading ------------------------------------------------------------------------------------------------------

    def completed(self) -> set[str]:
        """Return the ids of the complete cells. A cell whose part was deleted counts as not complete."""
        parts = {entry.name for entry in self.path.glob("part-*.parquet")}
        marked = (entry.name[len("cell-") : -len(".json")] for entry in self.path.glob("cell-*.json"))
        return {name for name in marked if f"part-{name}.parquet" in parts}

    def cells(self) -> list[Cell]:
        """Return the complete cells, by arm, seed, grid point and id.

        Raises:
            StoreError: The mark of a cell is damaged.
        """
        return [cell for cell, _ in self._marks()]

    def wall_times(self) -> dict[str, float]:
        """Return the seconds each complete cell took, by id, in the order of `cells`.

        Raises:
            StoreError: The mark of a cell is damaged.
        """
        return {cell.id: wall for cell, wall in self._marks()}

    def frame(self, *, probe: str | None = None, name: str | None = None, site: str | None = None) -> "pl.DataFrame":
        """Return the records of all complete cells and flushed parts, in an order that does not depend on the writing.

        Args:
            probe: Keep this probe's records only.
            name: Keep this quantity only.
            site: Keep this site only; ``""`` is the whole model.

        Returns:
            Columns cell, arm, seed, one for each grid coordinate (sorted), step, probe, site, name, value, unit. Rows
            sorted by arm, seed, coordinates, cell, probe, site, name, step, value; arm, seed and coordinates are null
            for records of no cell.

        Raises:
            StoreError: A part or mark is damaged.
        """
        chosen = {"probe": probe, "name": name, "site": site}
        kept = {key: value for key, value in chosen.items() if value is not None}
        where = " WHERE " + " AND ".join(f"{key} = ?" for key in kept) if kept else ""
        with contextlib.suppress(StoreError):  # what cannot be written can be read all the same
            self.flush()
        waiting = [record for record in self._buffer if all(getattr(record, k) == v for k, v in kept.items())]
        cells, rows = self._query(f"SELECT * FROM records{where}", list(kept.values()))
        if waiting:
            import polars as pl

            more = _table.in_memory(_table.from_records(waiting), cells)
            rows = pl.concat([rows.select(more.columns), more])
        return _table.ordered(rows, cells)

    def sql(self, query: str) -> "pl.DataFrame":
        """Ask the run in SQL (DuckDB's dialect).

        Args:
            query: Over the view ``records`` (the columns of `frame`) and the table ``cells`` (cell, arm, seed,
                coordinates, study, settings, wall_s).

        Raises:
            UsageError: The query is wrong; the message is the database's.
            StoreError: A part or mark is damaged.

        Example:
            ``store.sql("SELECT arm, avg(value) AS loss FROM records WHERE name = 'loss' GROUP BY arm ORDER BY arm")``
        """
        self.flush()
        return self._query(query)[1]

    def _query(self, query: str, parameters: Iterable[Any] = ()) -> tuple[list[Cell], "pl.DataFrame"]:
        marks = self._marks()
        cells = [cell for cell, _ in marks]
        walls = {cell.id: wall for cell, wall in marks}

        def read(parts: list[Part]) -> "pl.DataFrame":
            found = [self._part(cell.id) for cell in cells]
            found += [part.path for part in parts if part.path != self._writer.next_path]
            with _table.database(cells, walls, found) as connection:
                return _table.fetch(connection, query, list(parameters))

        return cells, read_parts(self.path, read)

    def _marks(self) -> list[tuple[Cell, float]]:
        found = []
        for name in self.completed():
            path = self._mark(name)
            try:
                mark = json.loads(path.read_text(encoding="utf-8"))
                cell, wall = Cell.from_json(json.dumps(mark["cell"])), float(mark["wall_s"])
            except (OSError, ValueError, TypeError, KeyError, NormscopeError):
                cell, wall = None, 0.0
            if cell is None or cell.id != name:
                raise StoreError(f"{path} is damaged; delete it and run again: its cell is then computed anew")
            found.append((cell, wall))
        return sorted(found, key=lambda mark: (mark[0].arm, mark[0].seed, mark[0].to_json()))

    def _part(self, name: str) -> Path:
        return self.path / f"part-{name}.parquet"

    def _mark(self, name: str) -> Path:
        return self.path / f"cell-{name}.json"

    def _must_be_writable(self) -> None:
        if not self._writable:
            raise StoreError(f"{self.path} is open for reading; open it with Store.create to write")

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self.completed())} complete cells)"
