"""Records of an open-ended run that wait in memory, and their way to the disk, part by part."""

import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from normscope._errors import StoreError
from normscope.records import _table
from normscope.records.part_writer import PartWriter
from normscope.records.parts import Part
from normscope.records.record import Record

#: Records that wait for a disk that cannot be written, at most; beyond that the oldest are dropped.
MOST_WAITING = 500_000

_SHARE = 0.02  # of a training's time, at most, goes into flushes
_LONGEST_PAUSE = 60.0


class Flushing:
    """Appended records, and when they are written.

    Args:
        folder: The run's folder.
        prepare: Called before a write: makes the run's own file again where the folder was made anew.
        rows: Appended records after which a part is flushed.
        seconds: Seconds after a flush at which the next append flushes again.

    Attributes:
        waiting: Records that have not reached the disk.
        lost: How many records were dropped because they could not be written.
    """

    def __init__(self, folder: Path, prepare: Callable[[], None], rows: int, seconds: float) -> None:
        self._folder, self._prepare = folder, prepare
        self._rows, self._seconds = rows, seconds
        self.waiting: list[Record] = []
        self.lost = 0
        self._writer = PartWriter(folder)
        self._due = -math.inf  # the first records are written at once, for who looks on
        self._took = 0.0  # seconds of the last flush
        self._failures = 0
        self._process = os.getpid()

    def append(self, records: Iterable[Record]) -> None:
        """Add records; see `Store.append`."""
        self._leave_to_the_parent()
        self.waiting.extend(records)
        if (surplus := len(self.waiting) - MOST_WAITING) > 0:
            del self.waiting[:surplus]
            self.lost += surplus
        if len(self.waiting) >= self._rows and not self._failures:
            self.flush()
        else:
            self.flush_if_due()

    def flush_if_due(self) -> None:
        """Flush if the time has come and records wait."""
        if self.waiting and time.monotonic() >= self._due:
            self.flush()

    def flush(self) -> None:
        """Write the records appended so far as a part of their own; see `Store.flush`."""
        self._leave_to_the_parent()
        if not self.waiting:
            return
        began = time.monotonic()
        try:
            self._write()
        except StoreError as error:
            self._failures += 1
            self._due = time.monotonic() + min(self._seconds * 2**self._failures, _LONGEST_PAUSE)
            lost = f"; {self.lost} were dropped" if self.lost else ""
            raise StoreError(f"{error} ({len(self.waiting)} records wait in memory for another try{lost})") from error
        self.waiting.clear()
        self._failures = 0
        now = time.monotonic()
        # The faster of the last two flushes counts: a single slow flush tells nothing, and the first imports Polars.
        self._due = now + max(self._seconds, min(now - began, self._took, _LONGEST_PAUSE * _SHARE) / _SHARE)
        self._took = now - began

    def is_of_a_failed_flush(self, part: Part) -> bool:
        """Whether a part holds records that wait here for another try."""
        return self._writer.is_of_a_failed_flush(part)

    def _write(self) -> None:
        """Write the waiting records, whatever goes wrong is a StoreError."""
        if not self._folder.is_dir():
            raise StoreError(f"cannot write into {self._folder}: the folder is gone; make it again")
        try:
            frame = _table.from_records(self.waiting)
        except StoreError:
            kept = [record for record in self.waiting if _table.is_record(record)]
            self.lost += len(self.waiting) - len(kept)
            self.waiting = kept
            raise
        try:
            self._prepare()
            self._writer.write(frame)
        except StoreError:
            raise
        except Exception as error:
            raise StoreError(f"cannot write into {self._folder}: {type(error).__name__}: {error}") from error

    def _leave_to_the_parent(self) -> None:
        """Forget, in a forked process, the records that its parent will write."""
        if self._process != os.getpid():
            self._process = os.getpid()
            self.waiting = []
