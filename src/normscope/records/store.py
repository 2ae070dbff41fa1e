"""Where records are kept: a run folder on disk, or a list in memory.

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

import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from normscope._errors import NormscopeError, StoreError, UsageError
from normscope.records import _table, files as _files
from normscope.records.cell import Cell
from normscope.records.json import canonical_form, digest
from normscope.records.provenance import collect
from normscope.records.record import Record

if TYPE_CHECKING:
    import polars as pl

#: Version of the folder's layout.
FORMAT = 1


class Store:
    """A run on disk. Make one with `create`, read one with `open`.

    Attributes:
        path: The run's folder.
        config: Configuration of the run, plain JSON.
        provenance: Versions, machine, commit and time of the run's start, as `collect` gave them.
    """

    def __init__(
        self, path: Path, run: Mapping[str, Any], *, writable: bool, rows: int = 20_000, seconds: float = 30.0
    ):
        self.path = path
        self.config: Mapping[str, Any] = MappingProxyType(run["config"])
        self.provenance: Mapping[str, Any] = MappingProxyType(run["provenance"])
        self._run = run
        self._writable = writable
        self._rows, self._seconds = rows, seconds
        self._buffer: list[Record] = []
        self._flushed = time.monotonic()

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], config: Mapping[str, Any], *, rows: int = 20_000, seconds: float = 30.0
    ) -> "Store":
        """Start a run in a folder, or take up the run that lies there if its configuration is the same.

        Left-over temporary files of processes that died are removed.

        Args:
            path: The run's folder; made if need be.
            config: Everything that determines the run's numbers, as JSON values.
            rows: Appended records after which a part is flushed.
            seconds: Seconds after which the next append flushes.

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
            _files.write_text(folder / "run.json", json.dumps(run, indent=1) + "\n", replace=False)
        there = _read_run(folder)
        if there["config_hash"] != digest(wanted):
            raise StoreError(
                f"{folder} holds a run with another configuration ({_differences(there['config'], wanted)}); "
                "choose another --out, or delete that folder"
            )
        if not os.access(folder, os.W_OK):
            raise StoreError(f"{folder} cannot be written; choose another --out")
        _files.clean(folder)
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
        return cls(folder, _read_run(folder), writable=False)

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
        _files.write_whole(part, lambda temporary: _write_parquet(frame, temporary))
        text = json.dumps({"cell": json.loads(cell.to_json()), "wall_s": float(wall_s), "records": frame.height}) + "\n"
        _files.write_text(mark, text)
        return True

    def append(self, records: Iterable[Record]) -> None:
        """Add records of an open-ended run; they reach the disk at the next flush.

        A flush comes by itself after ``rows`` records or ``seconds`` seconds (see `create`), at `frame`, `sql` and
        `close`, and at the end of a ``with`` block.

        Raises:
            StoreError: The store is open for reading only, or a flush failed.
        """
        self._must_be_writable()
        self._buffer.extend(records)
        if len(self._buffer) >= self._rows or time.monotonic() - self._flushed >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Write the records appended so far as a part of their own.

        Raises:
            StoreError: The folder cannot be written; the records stay, for another try.
        """
        if self._buffer:
            self._must_be_writable()
            frame = _table.from_records(self._buffer)
            path = self.path / f"scope-{time.time_ns():020d}-{uuid.uuid4().hex[:12]}.parquet"
            _files.write_whole(path, lambda temporary: _write_parquet(frame, temporary))
            self._buffer.clear()
        self._flushed = time.monotonic()

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
        cells, rows = self._query(f"SELECT * FROM records{where}", list(kept.values()))
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
        return self._query(query)[1]

    def _query(self, query: str, parameters: Iterable[Any] = ()) -> tuple[list[Cell], "pl.DataFrame"]:
        self.flush()
        marks = self._marks()
        cells = [cell for cell, _ in marks]
        parts = [self._part(cell.id) for cell in cells] + sorted(self.path.glob("scope-*.parquet"))
        with _table.database(cells, {cell.id: wall for cell, wall in marks}, parts) as connection:
            return cells, _table.fetch(connection, query, list(parameters))

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


class MemoryStore:
    """Records in memory, for a scope that keeps no folder; reads like a `Store`."""

    def __init__(self) -> None:
        self._records: list[Record] = []

    def append(self, records: Iterable[Record]) -> None:
        """Add records."""
        self._records.extend(records)

    def flush(self) -> None:
        """Do nothing: there is no disk behind it."""

    close = flush

    def frame(self, *, probe: str | None = None, name: str | None = None, site: str | None = None) -> "pl.DataFrame":
        """Return the records as `Store.frame` does; arm and seed are null, for there are no cells."""
        kept = (
            record
            for record in self._records
            if (probe is None or record.probe == probe)
            and (name is None or record.name == name)
            and (site is None or record.site == site)
        )
        return _table.in_memory(_table.from_records(kept), ())


def _write_parquet(frame: "pl.DataFrame", path: Path) -> None:
    frame.write_parquet(path, compression="zstd", statistics=True)


def _read_run(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        whole = isinstance(run["config"], dict) and isinstance(run["provenance"], dict) and "config_hash" in run
        version = run["format"]
    except FileNotFoundError:
        raise StoreError(f"{folder} holds no run (no run.json); give the folder of a run") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        whole, version = False, FORMAT
    if not whole or (version == FORMAT and digest(run["config"]) != run["config_hash"]):
        raise StoreError(f"{path} is damaged; choose another --out, or delete the folder")
    if version != FORMAT:
        raise StoreError(f"{path} has layout {version}, this version reads {FORMAT}; use the version that wrote it")
    return dict(run)


def _differences(there: Mapping[str, Any], wanted: Mapping[str, Any], limit: int = 4) -> str:
    """Say which keys differ, as ``seeds: 10 there, 20 asked``."""
    old, new = dict(_flat(there)), dict(_flat(wanted))
    said = []
    for key in sorted(old.keys() | new.keys()):
        if key in old and key in new and old[key] == new[key]:
            continue
        have = json.dumps(old[key]) if key in old else "nothing"
        want = json.dumps(new[key]) if key in new else "nothing"
        said.append(f"{key}: {have} there, {want} asked")
    return "; ".join(said[:limit]) + (f"; and {len(said) - limit} more" if len(said) > limit else "")


def _flat(value: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _flat(item, f"{before}{key}.")
        else:
            yield f"{before}{key}", item
