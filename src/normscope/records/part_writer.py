"""Writes the parts of an open-ended run, and merges small parts into larger parts; see `normscope.records.parts`."""

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from normscope._errors import StoreError
from normscope.records import _table, files as _files
from normscope.records.parts import Part, part_with, read_part

if TYPE_CHECKING:
    import polars as pl

#: So many parts of one size become one part of the next size.
FAN_IN = 64
#: So many of the newest flushes are not merged yet, so that a viewer has met them by themselves.
LAG = 8
#: A part grows no further than so many records: a larger one would be held in memory for each merge.
MOST_ROWS = 2_000_000


class PartWriter:
    """Writes the flushes of one process as parts, and merges them.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._begin()

    def _begin(self) -> None:
        self._writer = f"{time.time_ns():020d}-{os.urandom(6).hex()}"
        self._process = os.getpid()
        self._next = self._failed = 0
        self._levels: list[list[tuple[Part, int]]] = []  # parts of each size that are not merged yet, with their rows

    def write(self, frame: "pl.DataFrame") -> None:
        """Write one flush.

        A flush that failed is written again under its number, so that records which had reached the disk all the same
        are not there twice: of two parts of one number the later try holds.

        Raises:
            StoreError: The folder cannot be written; nothing is lost but this flush, which may be tried again.
        """
        if os.getpid() != self._process:  # a copy of the writer in a forked process
            self._begin()
        try:
            part = self._put((self._next, self._next), self._failed, frame)
        except BaseException:
            self._failed += 1
            raise
        self._next += 1
        self._failed = 0
        self._add(0, part, frame.height)

    def is_of_a_failed_flush(self, part: Part) -> bool:
        """Whether a part is of the flush that will be tried again: it failed after all was written."""
        return part.writer == self._writer and part.first == self._next

    def _put(self, flushes: tuple[int, int], again: int, frame: "pl.DataFrame") -> Part:
        try:
            content = _table.to_bytes(frame)
        except StoreError as error:
            raise StoreError(f"cannot write {self._folder}: {error}") from error
        part = part_with(self._folder, self._writer, flushes, again, content)
        _files.write_bytes(part.path, content)
        return part

    def _add(self, level: int, part: Part, rows: int) -> None:
        if level == len(self._levels):
            self._levels.append([])
        waiting = self._levels[level]
        waiting.append((part, rows))
        if len(waiting) < FAN_IN + (LAG if level == 0 else 0):
            return
        oldest, self._levels[level] = waiting[:FAN_IN], waiting[FAN_IN:]
        # Merged or not, they are not tried again: as they are they can be read.
        if sum(rows for _, rows in oldest) <= MOST_ROWS:
            merged = self._merge([part for part, _ in oldest])
            if merged is not None:
                self._add(level + 1, *merged)

    def _merge(self, parts: list[Part]) -> tuple[Part, int] | None:
        """Put one part in the place of several; leave them where it cannot be done, for nothing is lost by that."""
        try:
            frame = _table.joined(map(read_part, parts))
            covering = self._put((parts[0].first, parts[-1].last), 0, frame)
        except Exception:
            return None
        for part in parts:
            with contextlib.suppress(OSError):
                part.path.unlink()
        return covering, frame.height
