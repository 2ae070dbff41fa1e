"""Records in memory, for who keeps no folder."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from normscope.records import _table
from normscope.records.record import Record

if TYPE_CHECKING:
    import polars as pl


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
