"""The records of one recorder: in memory or in a store, and handed on to further places."""

import os
import weakref
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING

from normscope._errors import UsageError
from normscope.modules.rng import streams_kept
from normscope.probes._sinks import Delivery, RecordSink, Sink
from normscope.records import Finding, MemoryStore, Record, Store

if TYPE_CHECKING:
    import polars


class RecordLog:
    """Keeps records and hands them on. What is pending when the program ends, or the log is dropped, is written out.

    Args:
        sink: Where the records are kept; None keeps them in memory.
        sinks: Where else they are shown.

    Attributes:
        has_foreign_sinks: Whether records are handed to anything but the package's own store.
    """

    def __init__(self, sink: RecordSink | None, sinks: Sequence[Sink]) -> None:
        self._sink = sink
        self.has_foreign_sinks = bool(sinks) or not isinstance(sink, (Store, type(None)))
        self._store = None if sink is None else Delivery(sink)
        self._deliveries = [*filter(None, [self._store]), *map(Delivery, sinks)]
        self._records: list[Record] = []
        self._drained = 0
        if self._deliveries:
            weakref.finalize(self, _flush_all, self._deliveries, os.getpid())

    def take(self, records: list[Record]) -> None:
        """Keep records, and hand them on."""
        if self._store is None:
            self._records += records
        for delivery in self._deliveries:
            delivery.append(records)

    def tell(self, finding: Finding) -> None:
        """Hand on a finding."""
        with streams_kept():
            for delivery in self._deliveries:
                delivery.finding(finding)

    def tick(self) -> None:
        """Have the store write out what has waited long enough."""
        if self._store is not None:
            self._store.tick()

    def frame(self) -> "polars.DataFrame":
        """Return all records, also those that a failing store has not taken."""
        if self._sink is None or self._store is None:
            return _in_memory(self._records)
        self._store.flush()
        waiting = self._store.waiting()
        try:
            frame = self._sink.frame()
        except Exception:
            if not waiting:
                raise
            return _in_memory(waiting)  # the folder is gone: what it has not taken is here
        if not waiting or hasattr(self._sink, "unwritten"):  # a store's frame has what is not written, too
            return frame
        import polars

        return polars.concat([frame, _in_memory(waiting)], how="diagonal_relaxed")

    def drain(self) -> list[Record]:
        """Return the records since the last drain.

        Raises:
            UsageError: Records go to a store.
        """
        if self._sink is not None:
            raise UsageError("records go to a store: read them by scope.records(), or leave record_to out")
        fresh = self._records[self._drained :]
        self._drained = len(self._records)
        return fresh

    def close(self, page: "PathLike[str] | None") -> None:
        """Write out what is pending, and hand a page to the sinks."""
        with streams_kept():
            for delivery in self._deliveries:
                delivery.close(page)


def _in_memory(records: Sequence[Record]) -> "polars.DataFrame":
    store = MemoryStore()
    store.append(records)
    return store.frame()


def _flush_all(deliveries: Sequence[Delivery], process: int) -> None:
    if os.getpid() == process:  # a forked process has a copy of what its parent writes
        for delivery in deliveries:
            delivery.flush()
