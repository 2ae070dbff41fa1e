"""Parts of open-ended runs: how they are named, which of them hold, and how small parts become larger parts.

A part ``scope-TIME-WRITER-FIRST-LAST-TRY-DIGEST.parquet`` holds the flushes FIRST to LAST of one writer, counted from
0; TIME is when the writer began, TRY how often these flushes had failed before, and DIGEST proves what the file holds:
a part whose content is another, or was written under another name, is refused. When a writer has enough parts of
one size it writes one part that covers them, and deletes them after it is in place. A part that lies within another
part of its writer is *covered*: it counts as absent. So a reader finds each flush once, at whatever moment the writer
works or dies.
"""

import contextlib
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from normscope._errors import StoreError
from normscope.records import _table
from normscope.records.marks import content_digest
from normscope.records.places import Folder

if TYPE_CHECKING:
    import polars as pl

#: Parts of older versions have no digest, the oldest no numbers.
_NAME = re.compile(
    r"scope-(?P<time>\d{20})-(?P<writer>[0-9a-f]{12})"
    r"(-(?P<first>\d{8,})-(?P<last>\d{8,})(-(?P<again>\d+)-(?P<digest>[0-9a-f]{16}))?)?\.parquet"
)
_LISTINGS = 20  # tries to find the folder at rest
#: Seconds for which a reader starts again while parts vanish under it. A busy writer merges every few milliseconds at
#: worst, and a slow reader must meet a gap between two merges: a number of tries would run out on some machine.
PATIENCE = 20.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """One part of an open-ended run.

    Attributes:
        path: Where it lies.
        writer: Who wrote it: time and number of the writer.
        first: Number of the first flush in it.
        last: Number of the last flush in it.
        again: How often these flushes had failed before; -1 for a part of an older version.
        digest: What proves its content; empty for a part of an older version.
        claimed: False for a part of an older version, whose scope left no claim of its cell.
    """

    path: Path
    writer: str
    first: int = 0
    last: int = 0
    again: int = -1
    digest: str = ""
    claimed: bool = True

    @property
    def writer_began(self) -> float:
        """When its writer began, in seconds since 1970."""
        return int(self.writer.partition("-")[0]) / 1e9

    def covers(self, other: "Part") -> bool:
        """Whether the flushes of another part of the same writer are all in this larger or later one."""
        return self.merges(other) or (self._flushes() == other._flushes() and self.again > other.again)

    def merges(self, other: "Part") -> bool:
        """Whether another part of the same writer was put into this larger one."""
        within = self.writer == other.writer and self.first <= other.first and other.last <= self.last
        return within and self._flushes() != other._flushes()

    def _flushes(self) -> tuple[str, int, int]:
        return self.writer, self.first, self.last

    def content(self) -> bytes:
        """Return the file's content.

        Raises:
            FileNotFoundError: The part is gone.
            StoreError: It is damaged or cannot be read.
        """
        content = Folder(self.path.parent).read(self.path.name)
        if self.digest and self.digest != content_digest(content, self.path.name.rpartition("-")[0]):
            raise StoreError(self.damage())
        return content

    def damage(self) -> str:
        """Say that the part is damaged, and what to do."""
        return f"{self.path} is damaged; delete it: its records are lost, all others are read"


def part_with(folder: Path, writer: str, flushes: tuple[int, int], again: int, content: bytes) -> Part:
    """Return the part of a writer that holds a content, under the name that proves it.

    Args:
        folder: Where it lies, or is to lie.
        writer: Time and number of its writer.
        flushes: Numbers of the first and the last flush in it.
        again: How often these flushes had failed before.
        content: The file's content.
    """
    first, last = flushes
    name = f"scope-{writer}-{first:08d}-{last:08d}-{again}"
    digest = content_digest(content, name)
    return Part(folder / f"{name}-{digest}.parquet", writer, first, last, again, digest)


def list_parts(folder: Path) -> list[Part]:
    """Return the parts in a folder that no other part covers, oldest writer first; none if there is no folder.

    Raises:
        StoreError: The folder cannot be read.
    """
    return [part for part, covered in _marked(_at_rest(folder)) if not covered]


def read_parts(folder: Path, read: Callable[[list[Part]], T]) -> T:
    """Return what ``read`` makes of a folder's parts; ``read`` starts again if a part vanishes under it.

    Args:
        folder: The run's folder.
        read: Takes the parts; raises anything when a file is missing.

    Raises:
        StoreError: The folder cannot be read, or its parts keep vanishing for `PATIENCE` seconds.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        parts = list_parts(folder)
        try:
            return read(parts)
        except Exception:
            if all(part.path.exists() for part in parts):
                raise
            if time.monotonic() > deadline:  # no part is damaged: nobody is told to delete anything
                raise StoreError(f"{folder} changes faster than it can be read; try again in a moment") from None


def read_part(part: Part, columns: Sequence[str] = _table.PART) -> "pl.DataFrame":
    """Return the rows of a part in the order in which they were appended.

    Args:
        part: The part.
        columns: Those that are wanted.

    Raises:
        StoreError: The part is damaged or gone.
    """
    try:
        return _table.from_bytes(part.content(), columns)
    except FileNotFoundError:
        raise StoreError(f"{part.path} is gone") from None
    except _table.DamagedError:
        raise StoreError(part.damage()) from None


def texts(frame: "pl.DataFrame") -> "pl.DataFrame":
    """Return a part's rows with their words as texts."""
    import polars as pl

    return frame.with_columns(pl.col(pl.Categorical).cast(pl.String))


def delete_covered(folder: Path) -> None:
    """Delete the parts that a writer which died had covered already."""
    for part, covered in _marked(_at_rest(folder)):
        if covered:
            with contextlib.suppress(OSError):
                part.path.unlink()


def _at_rest(folder: Path) -> list[Part]:
    """List the parts until two listings agree.

    A single listing may miss a covering part that appears behind it and the covered parts that vanish before it.
    """
    before = None
    for _ in range(_LISTINGS):
        names = _names(folder)
        if names == before:
            break
        before = names
    return [_part(folder / name, match) for name in names if (match := _NAME.fullmatch(name))]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.startswith("scope-"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"cannot read {folder}: {error.strerror or error}") from None


def _part(path: Path, match: re.Match[str]) -> Part:
    writer = f"{match['time']}-{match['writer']}"
    if match["first"] is None:
        return Part(path, writer, claimed=False)
    again = -1 if match["again"] is None else int(match["again"])
    return Part(path, writer, int(match["first"]), int(match["last"]), again, match["digest"] or "")


def _marked(parts: list[Part]) -> list[tuple[Part, bool]]:
    """Sort the parts by writer and flush, and say of each whether another covers it."""
    ordered = sorted(parts, key=lambda part: (part.writer, part.first, -part.last, -part.again))
    marked = []
    widest: Part | None = None
    for part in ordered:  # of one writer, ranges are apart or lie within each other: the widest comes first
        covered = widest is not None and widest.covers(part)
        marked.append((part, covered))
        if not covered:
            widest = part
    return marked
