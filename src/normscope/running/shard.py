"""A share of a run: several invocations of one command on one folder, each of which runs its own cells."""

import re
from collections.abc import Container, Sequence
from typing import NamedTuple, TypeVar

from normscope._errors import NormscopeError, UsageError
from normscope.records import Cell
from normscope.records.numbers import counted

T = TypeVar("T")


class IncompleteRunError(NormscopeError):
    """A shard has run its cells, but cells of other shards are missing, so nothing is judged yet.

    Attributes:
        shard: The shard, as ``2/3``.
        ran: Number of its cells, all complete.
        complete: Number of complete cells of the run.
        total: Number of cells of the run.
        failed: Number of studies beside it that failed.
    """

    def __init__(self, shard: str, ran: int, complete: int, total: int, failed: int = 0) -> None:
        super().__init__(f"shard {shard} has run its {counted(ran, 'cell')}; {complete} of {total} cells are complete")
        self.shard, self.ran, self.complete, self.total, self.failed = shard, ran, complete, total, failed

    @classmethod
    def together(cls, errors: "Sequence[IncompleteRunError]", failed: int) -> "IncompleteRunError":
        """Return the error of several studies that are incomplete, beside some that failed."""
        ran, complete, total = (sum(getattr(each, name) for each in errors) for name in ("ran", "complete", "total"))
        return cls(errors[0].shard, ran, complete, total, failed)


class Shard(NamedTuple):
    """Which share of a run an invocation computes.

    Attributes:
        number: Which share, from 1.
        shares: How many shares there are.
    """

    number: int
    shares: int

    @classmethod
    def of(cls, words: "str | Shard") -> "Shard":
        """Read ``"2/3"``.

        Raises:
            UsageError: The words are no share.
        """
        if isinstance(words, Shard):
            return words
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", str(words).strip())
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"--shard is K/N with K from 1 to N, such as 2/3; got {str(words)!r}")
        return cls(int(found[1]), int(found[2]))

    def share(self, groups: Sequence[T]) -> list[T]:
        """Return the groups of this share.

        Args:
            groups: All groups of the run, complete or not, in an order that every shard lists alike: so shares never
                overlap, whatever is complete when a shard looks.
        """
        return list(groups[self.number - 1 :: self.shares])

    def require_all(self, mine: Sequence[Sequence[Cell]], wanted: Sequence[Cell], done: Container[str]) -> None:
        """Refuse to go on while cells of other shares are missing.

        Args:
            mine: The groups of this share, all complete.
            wanted: The cells of the run.
            done: Ids of those that are complete.

        Raises:
            IncompleteRunError: Cells are missing.
        """
        complete = sum(cell.id in done for cell in wanted)
        if complete < len(wanted):
            raise IncompleteRunError(str(self), sum(map(len, mine)), complete, len(wanted))

    def __str__(self) -> str:
        return f"{self.number}/{self.shares}"
