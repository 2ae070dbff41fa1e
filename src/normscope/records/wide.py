"""Records in other forms: a row for each step and site with a column for each quantity; and as frames of pandas."""

import importlib
from typing import TYPE_CHECKING, Any

from normscope._errors import UsageError
from normscope._unit import near

if TYPE_CHECKING:
    import polars as pl


def wide(records: "pl.DataFrame", probe: str) -> "pl.DataFrame":
    """Return what a probe read with a column for each quantity, in place of a row for each.

    Args:
        records: A frame of records in their order, as a store or a scope returns it.
        probe: The probe's code.

    Returns:
        A row for each step and site of a cell, with the columns of ``records`` that say where a value was read. A
        quantity that was not read there is null. Of a value that was recorded twice, each has a row.

    Raises:
        UsageError: The probe has no records.
    """
    import polars as pl

    rows = records.filter(pl.col("probe") == probe)
    if rows.is_empty():
        codes = records["probe"].unique().sort().to_list()
        advice = f"there are records of {near(probe, codes)}" if codes else "nothing was recorded yet"
        raise UsageError(f"no records of a probe {probe!r}: {advice}")
    where = [name for name in records.columns if name not in ("probe", "name", "value", "unit")]
    time = "number of the repetition"
    rows = rows.with_columns(pl.int_range(pl.len()).over([*where, "name"]).alias(time))
    return rows.pivot("name", index=[*where, time], values="value").drop(time)


def to_pandas(frame: "pl.DataFrame") -> Any:
    """Return a frame as a ``pandas.DataFrame``; polars' own conversion needs pyarrow, too.

    Raises:
        UsageError: pandas is not installed.
    """
    try:
        pandas = importlib.import_module("pandas")
    except ImportError:
        raise UsageError("pandas is not installed: `pip install pandas`, or use the polars frame as it is") from None
    return pandas.DataFrame(frame.to_dict(as_series=False), columns=frame.columns)
