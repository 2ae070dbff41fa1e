"""A run asked in SQL, by DuckDB, an extra.

DuckDB hands its results over as NumPy arrays: that needs no further package, where its Arrow exchange asks for one.
"""

import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope._errors import StoreError, UsageError
from normscope.records import _table
from normscope.records.cell import Cell
from normscope.records.json import canonical

if TYPE_CHECKING:
    import duckdb
    import polars as pl


def ask(query: str, records: "pl.DataFrame", cells: Sequence[Cell], walls: Mapping[str, float]) -> "pl.DataFrame":
    """Return what a query finds in the view ``records`` and the table ``cells``.

    Args:
        query: In DuckDB's dialect.
        records: The rows of all parts, which were verified.
        cells: The cells.
        walls: Seconds that each took, by id.

    Raises:
        UsageError: The query is wrong, or DuckDB is not installed.
        StoreError: The names of two coordinates differ in case alone.
    """
    with tempfile.TemporaryDirectory(prefix="normscope-") as folder:
        file = Path(folder) / "records.parquet"
        file.write_bytes(_table.to_bytes(records))
        with _database(cells, walls, file) as connection:
            return _fetch(connection, query)


@contextmanager
def _database(
    cells: Sequence[Cell], walls: Mapping[str, float], records: Path
) -> Iterator["duckdb.DuckDBPyConnection"]:
    """Open a database in memory with the view ``records`` and the table ``cells``."""
    try:
        import duckdb
    except ImportError:
        raise UsageError("a query needs DuckDB, which is not installed: pip install 'normscope[sql]'") from None
    keys, source = _told_apart(cells), _exactly(records)
    # Settings that would let a query reach the network are off; parquet is built in.
    settings: dict[str, Any] = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    with duckdb.connect(":memory:", config=settings) as connection:
        table = _table.table_of(cells)
        table["study"] = ("VARCHAR", [cell.study for cell in cells])
        table["settings"] = ("VARCHAR", [canonical(cell.settings) for cell in cells])
        table["wall_s"] = ("DOUBLE", [walls[cell.id] for cell in cells])
        connection.execute(f"CREATE TABLE cells ({', '.join(f'{_quote(k)} {kind}' for k, (kind, _) in table.items())})")
        if cells:
            rows = list(zip(*(values for _, values in table.values()), strict=True))
            connection.executemany(f"INSERT INTO cells VALUES ({', '.join('?' * len(table))})", rows)
        names = ", ".join("c." + _quote(name) for name in ("arm", "seed", *keys))
        try:
            connection.execute(
                f"CREATE VIEW records AS SELECT r.cell, {names}, r.step, r.probe, r.site, r.name, r.value, r.unit "
                f"FROM read_parquet('{source}') r LEFT JOIN cells c ON r.cell = c.cell"
            )
            yield connection
        except duckdb.Error as error:
            raise UsageError(f"the query cannot be run: {' '.join(str(error).split())}") from None


def _told_apart(cells: Sequence[Cell]) -> list[str]:
    keys = _table.keys_of(cells)
    for first, second in pairwise(sorted(keys, key=str.lower)):
        if first.lower() == second.lower():
            raise StoreError(
                f"grid coordinates {first!r} and {second!r} differ in case alone; SQL cannot tell them apart"
            )
    return keys


def _exactly(path: Path) -> str:
    """Return a path as DuckDB's patterns write it, in which brackets, stars and question marks mean more."""
    return re.sub(r"([*?\[])", r"[\1]", str(path)).replace("'", "''")


def _quote(name: str) -> str:
    """Return an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def _fetch(connection: "duckdb.DuckDBPyConnection", query: str) -> "pl.DataFrame":
    """Run a query and return its rows as a frame, nulls kept apart from NaN."""
    import numpy as np
    import polars as pl

    cursor = connection.execute(query)
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
