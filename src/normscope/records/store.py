"""Where records are kept: a run in a folder or a bucket.

A run is::

    run.json              configuration, its hash, provenance
    part-CELL.parquet     all records of one cell
    cell-CELL.json        that cell's configuration, wall time and the part's digest: the mark that the cell is complete
    scope-CELL.json       the claim of an open-ended run on the name of its cell
    scope-....parquet     records of open-ended runs (see `normscope.records.parts`)

Every file appears whole or not at all, the mark after its part. So at any moment a reader, or the next start after a
crash, finds whole cells and nothing half: a part without its mark is as good as absent. What is read is proven: a part,
a mark or a ``run.json`` that is not what was written is refused by its name. Several processes may write different
cells into one run at once.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from normscope._errors import StoreError, UsageError
from normscope.records import _table
from normscope.records.addresses import place_of, require_folder
from normscope.records.cell import Cell
from normscope.records.flushing import Flushing
from normscope.records.json import canonical_form, digest, loads
from normscope.records.marks import Mark, content_digest
from normscope.records.parts import Part, delete_covered, read_part, read_parts
from normscope.records.places import Folder, Place
from normscope.records.record import Record
from normscope.records.run_file import FORMAT, UnreadableRunError, begun, differences, read_run, text_of

if TYPE_CHECKING:
    import polars as pl

_CLAIMED = "how the scope was made"
_MAKERS = ("source_file", "versions")  # of the configuration, what no cell's own name holds
_AGAIN = "delete it and run again: its cell is then computed anew"


class Store:
    """A run on disk or in a bucket. Make one with `create`, read one with `open`.

    Attributes:
        place: Where the run's files lie.
        path: The same as a path.
        config: Configuration of the run, plain JSON.
        provenance: Versions, machine, commit and time of the run's start, as `collect` gave them.
    """

    def __init__(
        self, place: Place, run: Mapping[str, Any], *, writable: bool, rows: int = 20_000, seconds: float = 2.0
    ):
        self.place, self.path = place, place.path
        self.config: Mapping[str, Any] = MappingProxyType(run["config"])
        self.provenance: Mapping[str, Any] = MappingProxyType(run["provenance"])
        self._run = run
        self._proven = run.get("format") == FORMAT
        self._made_by = digest({key: self.config[key] for key in _MAKERS if key in self.config})
        self._writable = writable
        self._flushing = Flushing(self.path, self._write_run_again, rows, seconds)

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], config: Mapping[str, Any], *, rows: int = 20_000, seconds: float = 2.0
    ) -> "Store":
        """Start a run in a folder or bucket, or take up the run that lies there if its configuration is the same.

        Scopes share a folder whatever their configurations are, for each has a cell of its own. Left-over files of
        processes that died are removed.

        Args:
            path: The run's folder, made if need be, or its address in a bucket (``s3://bucket/runs/mine``).
            config: Everything that determines the run's numbers, as JSON values.
            rows: Appended records after which a part is flushed.
            seconds: Seconds after a flush at which the next append flushes again; more where the disk is so slow that
                flushes would take more than 2 % of the time.

        Returns:
            The store, open for writing.

        Raises:
            StoreError: The folder holds a run of another configuration (the message says which keys differ), is a file,
                cannot be written, or its ``run.json`` is damaged.
            UsageError: The configuration has no JSON form, or a scope was to record into a bucket.
        """
        wanted = canonical_form(config)
        if not isinstance(wanted, dict):
            raise UsageError("a run's configuration is a mapping of names to values")
        for_scope = wanted.get("kind") == "scope"
        place, option = place_of(path), "record_to" if for_scope else "--out"
        if for_scope:
            require_folder(path, "a scope, which writes every few seconds,")
        place.prepare(option)
        if not place.holds("run.json"):
            if any(name.startswith("cell-") for name in place.names()):
                raise StoreError(
                    f"{place} holds records without their run.json, so what made them is unknown: put a copy of it "
                    f"back, delete that folder, or choose another {option}"
                )
            # Of several processes that start at once the first wins; the others find their own configuration there.
            place.write("run.json", text_of(begun(wanted)).encode(), replace=False)
        there = read_run(place)
        of_scopes = for_scope and there["config"].get("kind") == "scope"
        if there["config_hash"] != digest(wanted) and not of_scopes:
            raise StoreError(
                f"{place} holds a run with another configuration ({differences(there['config'], wanted)}); "
                f"choose another {option}, or delete that folder"
            )
        place.clean()
        if isinstance(place, Folder):
            delete_covered(place.path)
        if of_scopes:
            import polars  # noqa: F401  # now, not in the first step that is read
        return cls(place, there, writable=True, rows=rows, seconds=seconds)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Store":
        """Open a run for reading; nothing in the folder is touched.

        Raises:
            StoreError: There is no run, or its ``run.json`` is damaged.
        """
        place = place_of(path)
        if isinstance(place, Folder):
            if not place.path.exists():
                raise StoreError(f"{place} does not exist; give the folder of a run")
            if not place.path.is_dir():
                raise StoreError(f"{place} is a file; give the folder of a run")
        return cls(place, read_run(place), writable=False)

    @classmethod
    def open_scope(cls, path: str | os.PathLike[str]) -> tuple["Store", list[str]]:
        """Open a run for reading, that of a scope also if its ``run.json`` is missing or damaged.

        Returns:
            The store, and sentences on damaged files beside the records.

        Raises:
            StoreError: There is no run, or a run of a study whose ``run.json`` is damaged.
        """
        place, said = place_of(path), []
        try:
            store = cls.open(path)
        except UnreadableRunError:
            if not any(name.startswith("scope-") and name.endswith(".parquet") for name in place.names()):
                raise
            store = cls(place, {"config": {"kind": "scope"}, "provenance": {}}, writable=False)
            state = "damaged" if place.holds("run.json") else "missing"
            said.append(
                f"{place.at('run.json')} is {state}: the records are read all the same, what made them is unknown"
            )
        for name in place.names():
            if not (name.startswith("scope-") and name.endswith(".json")):
                continue
            try:
                whole = isinstance(loads(place.read(name)), dict)
            except (StoreError, OSError, ValueError):
                whole = False
            if not whole:
                said.append(f"{place.at(name)} is damaged: the records stand without it, but {_CLAIMED} is unknown")
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
        part, mark = _part(cell.id), _mark(cell.id)
        if self.place.holds(mark) and self.place.holds(part):
            return False
        frame = _table.from_records(records)
        others = set(frame["cell"].unique().cast(str)) - {cell.id}
        if others:
            raise StoreError(
                f"records of {min(others)!r} were to be written as cell {cell.id}; give the probes cell={cell.id!r}"
            )
        if Cell.from_json(cell.to_json()).id != cell.id:
            raise StoreError(f"cell {cell.id} was changed after it was named: leave its point and settings as they are")
        content = _table.to_bytes(frame)
        self.place.write(part, content)
        said = Mark(cell, float(wall_s), frame.height, content_digest(content), self._made_by)
        self.place.write(mark, said.to_json().encode())
        return True

    def append(self, records: Iterable[Record]) -> None:
        """Add records of an open-ended run; they reach the disk at the next flush.

        A flush comes by itself at the first append, later after ``rows`` records or ``seconds`` seconds (see
        `create`), at `frame`, `sql` and `close`, and at the end of a ``with`` block. After a flush that failed, the
        records wait in memory, at most `flushing.MOST_WAITING` of them, and the next try comes after a pause.

        Raises:
            StoreError: The store is open for reading only, or a flush failed. The store can be used on.
        """
        self._must_be_writable()
        self._flushing.append(records)

    def flush_if_due(self) -> None:
        """Flush if the time has come and records wait: to be called where no record may come for a while.

        Raises:
            StoreError: The folder cannot be written; the records stay, for another try.
        """
        self._flushing.flush_if_due()

    def flush(self) -> None:
        """Write the records appended so far as a part of their own.

        Raises:
            StoreError: The folder cannot be written; the records stay, for another try. What is no record is dropped.
        """
        self._flushing.flush()

    close = flush

    @property
    def lost(self) -> int:
        """How many appended records were dropped since the store was opened, because they could not be written."""
        return self._flushing.lost

    @property
    def unwritten(self) -> list[Record]:
        """The appended records that have not reached the disk."""
        return list(self._flushing.waiting)

    def _write_run_again(self) -> None:
        """Write ``run.json`` where the folder was made anew."""
        if not self.place.holds("run.json"):
            self.place.write("run.json", text_of(self._run).encode(), replace=False)

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.flush()

    # -- reading ------------------------------------------------------------------------------------------------------

    def completed(self) -> set[str]:
        """Return the ids of the complete cells. A cell whose part was deleted counts as not complete."""
        names = self.place.names()
        parts = {name for name in names if name.startswith("part-")}
        marked = (name[len("cell-") : -len(".json")] for name in names if name.startswith("cell-"))
        return {name for name in marked if _part(name) in parts}

    def cells(self) -> list[Cell]:
        """Return the complete cells, by arm, seed, grid point and id.

        Raises:
            StoreError: The mark of a cell is damaged.
        """
        return [mark.cell for mark in self._marks()]

    def wall_times(self) -> dict[str, float]:
        """Return the seconds each complete cell took, by id, in the order of `cells`.

        Raises:
            StoreError: The mark of a cell is damaged.
        """
        return {mark.cell.id: mark.wall_s for mark in self._marks()}

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
            StoreError: A part or mark is not what was written; the message names it.
        """
        wanted = {"probe": probe, "name": name, "site": site}
        marks = self._marks()
        rows = self._rows(marks, {key: value for key, value in wanted.items() if value is not None})
        return _table.in_memory(rows, [mark.cell for mark in marks])

    def sql(self, query: str) -> "pl.DataFrame":
        """Ask the run in SQL (DuckDB's dialect; needs the extra ``sql``).

        Args:
            query: Over the view ``records`` (the columns of `frame`) and the table ``cells`` (cell, arm, seed,
                coordinates, study, settings, wall_s).

        Raises:
            UsageError: The query is wrong, and the message is the database's; or DuckDB is not installed.
            StoreError: A part or mark is damaged.

        Example:
            ``store.sql("SELECT arm, avg(value) AS loss FROM records WHERE name = 'loss' GROUP BY arm ORDER BY arm")``
        """
        from normscope.records import _sql

        marks = self._marks()
        walls = {mark.cell.id: mark.wall_s for mark in marks}
        return _sql.ask(query, self._rows(marks, {}), [mark.cell for mark in marks], walls)

    def _rows(self, marks: list[Mark], kept: Mapping[str, str]) -> "pl.DataFrame":
        """Return the rows of all parts, and those that wait, which have the values of ``kept``."""
        with contextlib.suppress(StoreError):  # what cannot be written can be read all the same
            self.flush()
        self._require_parts(marks)
        of_cells = [_table.chosen(frame, kept) for frame in self._parts_of(marks)]

        def read(parts: list[Part]) -> "list[pl.DataFrame]":
            flushed = (part for part in parts if not self._flushing.is_of_a_failed_flush(part))
            return [_table.chosen(read_part(part), kept) for part in flushed]

        flushed = read_parts(self.path, read) if isinstance(self.place, Folder) else []
        return _table.joined([*of_cells, *flushed, _table.chosen(_table.from_records(self.unwritten), kept)])

    def _require_parts(self, marks: list[Mark]) -> None:
        """Refuse a run of which a part is gone whose mark is there: its records would be missing without a word."""
        whole = {_mark(mark.cell.id) for mark in marks}
        for name in self.place.names():
            if name.startswith("cell-") and name.endswith(".json") and name not in whole:
                part = _part(name[len("cell-") : -len(".json")])
                raise StoreError(f"{self.place.at(part)} is gone; run again: its cell is then computed anew")

    def _parts_of(self, marks: list[Mark]) -> "Iterator[pl.DataFrame]":
        """Yield the rows of each cell's part, proven by its mark."""
        names = [_part(mark.cell.id) for mark in marks]
        contents = self.place.read_each(names)
        for mark, name in zip(marks, names, strict=True):
            try:
                content = next(contents)
                mark.require(content)
                frame = _table.from_bytes(content)
                if mark.records is not None and mark.records != frame.height:
                    raise _table.DamagedError("records are missing or too many")
            except FileNotFoundError:
                raise StoreError(f"{self.place.at(name)} is gone; run again: its cell is then computed anew") from None
            except _table.DamagedError:
                raise StoreError(f"{self.place.at(name)} is damaged; {_AGAIN}") from None
            yield frame

    def _marks(self) -> list[Mark]:
        names = sorted(self.completed())
        found = []
        contents = self.place.read_each([_mark(name) for name in names])
        for name in names:
            try:
                mark = Mark.from_json(next(contents), name, proven=self._proven)
            except (OSError, _table.DamagedError):
                raise StoreError(f"{self.place.at(_mark(name))} is damaged; {_AGAIN}") from None
            if mark.made_by not in (None, self._made_by):
                made = "made by another file of the study, or with other versions of normscope or torch"
                raise StoreError(f"{self.place.at(_mark(name))} was {made}; {_AGAIN}")
            found.append(mark)
        return sorted(found, key=lambda mark: (mark.cell.arm, mark.cell.seed, mark.cell.to_json()))

    def _must_be_writable(self) -> None:
        if not self._writable:
            raise StoreError(f"{self.place} is open for reading; open it with Store.create to write")

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self.completed())} complete cells)"


def _part(name: str) -> str:
    return f"part-{name}.parquet"


def _mark(name: str) -> str:
    return f"cell-{name}.json"
