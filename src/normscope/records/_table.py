"""Records as a frame: columns, one order of rows, and the way into the bytes of a part and back."""

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normscope._errors import StoreError
from normscope.records.cell import Cell
from normscope.records.json import canonical
from normscope.records.record import Record

if TYPE_CHECKING:
    import polars as pl


class DamagedError(Exception):
    """The content of a file is not what was written; the message says what is wrong with it."""


#: More words than that cannot be told apart by one whole number.
MOST_KEYS = 2**63

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
    return ("cell", "arm", "seed", *keys_of(cells), "step", "probe", "site", "name", "value", "unit")


def keys_of(cells: Sequence[Cell]) -> list[str]:
    """Return the names of the coordinates of all cells, sorted."""
    return sorted({key for cell in cells for key in cell.point})


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
    for key in keys_of(cells):
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


def in_memory(records: "pl.DataFrame", cells: Sequence[Cell]) -> "pl.DataFrame":
    """Join records to their cells, and put columns and rows in their one order, whatever order they were written in.

    Args:
        records: With the columns of `PART`; the words are dictionary columns.
        cells: Those of the run. Records of no cell come first.
    """
    import polars as pl

    types = {"VARCHAR": pl.String, "BIGINT": pl.Int64, "DOUBLE": pl.Float64, "BOOLEAN": pl.Boolean}
    table = pl.DataFrame([pl.Series(name, values, types[kind]) for name, (kind, values) in table_of(cells).items()])
    table = table.sort("arm", "seed", *keys_of(cells), "cell", nulls_last=False)
    rows = ordered(records, table["cell"].to_list())
    table = table.with_columns(pl.col("cell").cast(pl.Categorical))
    joined = rows.join(table, on="cell", how="left", maintain_order="left").select(columns(cells))
    return joined.with_columns(pl.col(WORDS).cast(pl.String))


def ordered(records: "pl.DataFrame", cells: Sequence[str]) -> "pl.DataFrame":
    """Return the rows sorted by cell, probe, site, name, step, value and unit.

    Millions of rows are sorted by a whole number each, made of the ranks of their words, which takes an eighth of the
    time of a sort by the words.

    Args:
        records: With the columns of `PART`; the words are dictionary columns.
        cells: Ids of the cells in their order; other cells come before them, by name.
    """
    import polars as pl

    if records.is_empty():
        return records
    key, most = pl.lit(0, pl.UInt64), 1
    for name in ("cell", "probe", "site", "name"):
        words = records[name].unique().cast(pl.String).drop_nulls().sort()
        if name == "cell":
            known = set(cells)
            words = pl.Series([word for word in words if word not in known] + list(cells), dtype=pl.String)
        ranks = pl.Series(range(len(words)), dtype=pl.UInt64)
        rank = pl.col(name).replace_strict(words.cast(pl.Categorical), ranks, return_dtype=pl.UInt64)
        key, most = key * max(len(words), 1) + rank, most * max(len(words), 1)
    rest = ["step", "value", "unit"]
    if most >= MOST_KEYS:
        known_order = {cell: place for place, cell in enumerate(cells, 1)}
        place = pl.col("cell").cast(pl.String).replace_strict(known_order, default=0, return_dtype=pl.Int64)
        by = [place, *(pl.col(name).cast(pl.String) for name in ("cell", "probe", "site", "name")), *rest]
        return records.sort(by)
    return records.with_columns(key.alias("key")).sort("key", *rest).drop("key")


def to_bytes(frame: "pl.DataFrame") -> bytes:
    """Return the content of a part with these rows.

    Raises:
        StoreError: Polars failed.
    """
    import polars as pl

    content = io.BytesIO()
    try:
        frame.write_parquet(content, compression="zstd", statistics=True)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise StoreError(" ".join(str(error).split())) from error
    return content.getvalue()


def from_bytes(content: bytes, columns: Sequence[str] = PART) -> "pl.DataFrame":
    """Return the rows of a part, in their order, with some of its columns; the words are dictionary columns.

    Raises:
        DamagedError: This is no part.
    """
    import polars as pl

    kinds = dict.fromkeys(WORDS, pl.Categorical()) | {"step": pl.Int64(), "value": pl.Float64()}
    try:
        # Statistics are not asked: a part is read whole or not at all.
        frame = pl.read_parquet(io.BytesIO(content), columns=list(columns), use_statistics=False)
        return frame.select(pl.col(name).cast(kinds[name]) for name in columns)
    except (OSError, ValueError, pl.exceptions.PolarsError, pl.exceptions.PanicException):
        raise DamagedError("it is no parquet file with the columns of records") from None


def chosen(frame: "pl.DataFrame", kept: Mapping[str, str]) -> "pl.DataFrame":
    """Return the rows whose columns have the values of ``kept``."""
    import polars as pl

    if not kept:
        return frame
    return frame.filter(pl.all_horizontal(pl.col(name).cast(pl.String) == value for name, value in kept.items()))


def joined(frames: "Iterable[pl.DataFrame]", columns: Sequence[str] = PART) -> "pl.DataFrame":
    """Return the rows of several parts, one after the other."""
    import polars as pl

    found = [frame for frame in frames if frame.height]
    return pl.concat(found) if found else from_records(()).select(columns)
