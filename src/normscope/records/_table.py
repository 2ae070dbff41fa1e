"""Records as a frame: columns, one order of rows, and the way from parquet parts through DuckDB.

DuckDB hands its results over as NumPy arrays: that needs no further package, where its Arrow exchange asks for one.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope._errors import StoreError, UsageError
from normscope.records.cell import Cell
from normscope.records.json import canonical
from normscope.records.record import Record

if TYPE_CHECKING:
    import duckdb
    import polars as pl

#: Columns of a part, in order.
PART = ("cell", "step", "probe", "site", "name", "value", "unit")


def from_records(records: Iterable[Record]) -> "pl.DataFrame":
    """Return the records in their order, with the columns of `PART`; the words are dictionary columns.

    Args:
        records: Any iterable; values become float64, NaN and infinities are kept.

    Raises:
        StoreError: An item is no record.
    """
    import polars as pl

    rows = list(records)
    try:
        words = {name: pl.Series(name, [getattr(row, name) for row in rows], pl.String) for name in WORDS}
        words["step"] = pl.Series("step", [int(row.step) for row in rows], pl.Int64)
        words["value"] = pl.Series("value", [float(row.value) for row in rows], pl.Float64)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise StoreError(f"what was to be stored is not made of records ({error})") from None
    return pl.DataFrame([words[name] for name in PART]).with_columns(pl.col(WORDS).cast(pl.Categorical))


def is_record(row: Any) -> bool:
    """Return whether `from_records` takes something."""
    try:
        from_records([row])
    except StoreError:
        return False
    return True


#: Columns of a part that hold words.
WORDS = ("cell", "probe", "site", "name", "unit")


def columns(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Return the columns of a frame: the grid's coordinates stand, sorted, between the seed and the step."""
    return ("cell", "arm", "seed", *_keys(cells), "step", "probe", "site", "name", "value", "unit")


def _keys(cells: Sequence[Cell]) -> list[str]:
    keys = sorted({key for cell in cells for key in cell.point})
    for first, second in pairwise(sorted(keys, key=str.lower)):
        if first.lower() == second.lower():
            raise StoreError(
                f"grid coordinates {first!r} and {second!r} differ in case alone; SQL cannot tell them apart"
            )
    return keys


def table_of(cells: Sequence[Cell]) -> dict[str, tuple[str, list[Any]]]:
    """Return the cells' columns: SQL type and values.

    A coordinate that is whole numbers everywhere is BIGINT, numbers otherwise DOUBLE, one kind of truth value or text
    BOOLEAN or VARCHAR, and anything mixed its JSON text. Where a cell lacks a coordinate, null.
    """
    table: dict[str, tuple[str, list[Any]]] = {
        "cell": ("VARCHAR", [cell.id for cell in cells]),
        "arm": ("VARCHAR", [cell.arm for cell in cells]),
        "seed": ("BIGINT", [cell.seed for cell in cells]),
    }
    for key in _keys(cells):
        values = [cell.point.get(key) for cell in cells]
        kinds = {type(value) for value in values if value is not None}
        if kinds <= {int, float} and kinds and all(abs(v) < 2**63 for v in values if v is not None):
            kind: type = int if kinds == {int} else float
            table[key] = ("BIGINT" if kind is int else "DOUBLE", [None if v is None else kind(v) for v in values])
        elif kinds == {bool}:
            table[key] = ("BOOLEAN", values)
        elif kinds <= {str}:
            table[key] = ("VARCHAR", values)
        else:
            table[key] = ("VARCHAR", [None if v is None else canonical(v) for v in values])
    return table


def ordered(frame: "pl.DataFrame", cells: Sequence[Cell]) -> "pl.DataFrame":
    """Put columns and rows in their one order, whatever order the records were written in."""
    names = columns(cells)
    first = ("arm", "seed", *_keys(cells), "cell", "probe", "site", "name", "step", "value", "unit")
    return frame.select(names).sort(first, nulls_last=False)


def in_memory(records: "pl.DataFrame", cells: Sequence[Cell]) -> "pl.DataFrame":
    """Join records to their cells without a database, as `Database` would."""
    import polars as pl

    types = {"VARCHAR": pl.String, "BIGINT": pl.Int64, "DOUBLE": pl.Float64, "BOOLEAN": pl.Boolean}
    table = pl.DataFrame([pl.Series(name, values, types[kind]) for name, (kind, values) in table_of(cells).items()])
    joined = records.with_columns(pl.col(WORDS).cast(pl.String)).join(table, on="cell", how="left")
    return ordered(joined, cells)


@contextmanager
def database(
    cells: Sequence[Cell], walls: Mapping[str, float], parts: Sequence[Path]
) -> Iterator["duckdb.DuckDBPyConnection"]:
    """Open a database in memory with the views ``records`` and ``cells`` over the parts.

    Raises:
        StoreError: A part is damaged.
    """
    import duckdb

    # Settings that would let a query reach the network are off; parquet is built in.
    settings: dict[str, Any] = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    with duckdb.connect(":memory:", config=settings) as connection:
        table = table_of(cells)
        table["study"] = ("VARCHAR", [cell.study for cell in cells])
        table["settings"] = ("VARCHAR", [canonical(cell.settings) for cell in cells])
        table["wall_s"] = ("DOUBLE", [walls[cell.id] for cell in cells])
        connection.execute(f"CREATE TABLE cells ({', '.join(f'{quote(k)} {kind}' for k, (kind, _) in table.items())})")
        if cells:
            rows = list(zip(*(values for _, values in table.values()), strict=True))
            connection.executemany(f"INSERT INTO cells VALUES ({', '.join('?' * len(table))})", rows)
        names = ", ".join("c." + quote(name) for name in ("arm", "seed", *_keys(cells)))
        files = ", ".join("'" + str(part).replace("'", "''") + "'" for part in parts)
        source = (
            f"read_parquet([{files}])"
            if parts
            else "(SELECT ''::VARCHAR AS cell, 0::BIGINT AS step, ''::VARCHAR AS probe, ''::VARCHAR AS site, "
            "''::VARCHAR AS name, 0.0::DOUBLE AS value, ''::VARCHAR AS unit WHERE false)"
        )
        try:
            connection.execute(
                f"CREATE VIEW records AS SELECT r.cell, {names}, r.step, r.probe, r.site, r.name, r.value, r.unit "
                f"FROM {source} r LEFT JOIN cells c ON r.cell = c.cell"
            )
            yield connection
        except duckdb.Error as error:
            damaged = next((part for part in parts if not intact(part)), None)
            if damaged is not None:
                raise StoreError(_damaged(damaged)) from None
            raise UsageError(f"the query cannot be run: {' '.join(str(error).split())}") from None


def write(frame: "pl.DataFrame", path: Path) -> None:
    """Write a part.

    Raises:
        OSError: The disk is full, or the folder cannot be written.
        StoreError: Polars failed in another way; it raises errors of its own for the disk's too.
    """
    import polars as pl

    try:
        frame.write_parquet(path, compression="zstd", statistics=True)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise StoreError(f"cannot write {path.parent}: {' '.join(str(error).split())}") from error


def read(parts: Sequence[Path], columns: Sequence[str] = PART) -> "pl.DataFrame":
    """Return the rows of the parts, in their order within the parts.

    Raises:
        StoreError: A part is damaged or missing; the message names it.
    """
    import polars as pl

    frames = []
    for part in parts:
        try:
            frames.append(pl.read_parquet(part, columns=list(columns)))
        except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
            raise StoreError(_damaged(part)) from None
    return pl.concat(frames) if frames else from_records(()).select(columns)


def _damaged(part: Path) -> str:
    if part.name.startswith("scope-"):
        return f"{part} is damaged; delete it: its records are lost, all others are read"
    return f"{part} is damaged; delete it and run again: its cell is then computed anew"


def intact(part: Path) -> bool:
    """Say whether a parquet file can be read to its end."""
    try:
        read([part])
    except StoreError:
        return False
    return True


def quote(name: str) -> str:
    """Return an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def fetch(connection: "duckdb.DuckDBPyConnection", query: str, parameters: Sequence[Any] = ()) -> "pl.DataFrame":
    """Run a query and return its rows as a frame, nulls kept apart from NaN."""
    import numpy as np
    import polars as pl

    cursor = connection.execute(query, list(parameters))
    kinds = [str(column[1]) for column in cursor.description or ()]
    names = [str(column[0]) for column in cursor.description or ()]
    if len(set(names)) != len(names):
        raise UsageError("the query names two columns alike; give one of them another name with AS")
    found = cursor.fetchnumpy()
    types = {
        "VARCHAR": pl.String,
        "BIGINT": pl.Int64,
        "INTEGER": pl.Int32,
        "DOUBLE": pl.Float64,
        "FLOAT": pl.Float32,
        "BOOLEAN": pl.Boolean,
    }
    series = []
    for name, kind in zip(names, kinds, strict=True):
        array = found[name]
        mask = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else None
        values = np.ma.getdata(array)
        if values.dtype == object:
            listed = values.tolist()
            if mask is not None:
                listed = [None if gone else value for value, gone in zip(listed, mask, strict=True)]
            column = pl.Series(name, listed, types.get(kind), strict=False)
        else:
            column = pl.Series(name, values, types.get(kind))
            if mask is not None and mask.any():
                column = column.to_frame().select(pl.when(~pl.Series(mask)).then(pl.col(name)).alias(name)).to_series()
        series.append(column)
    return pl.DataFrame(series)
