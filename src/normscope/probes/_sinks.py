"""Where records go, and how a place that fails is kept from ending the user's training."""

from collections.abc import Callable, Iterable
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

from normscope.records import Finding, Record
from normscope.records.numbers import counted
from normscope.usercode import warn_user

if TYPE_CHECKING:
    import polars

#: Records that are kept for a place that fails; older ones are dropped.
KEPT = 200_000


class SinkWarning(UserWarning):
    """Records or findings did not reach the place where they were to go; training goes on."""


class RecordSink(Protocol):
    """The place where records are kept and read back."""

    def append(self, records: Iterable[Record]) -> None:
        """Take records."""

    def flush(self) -> None:
        """Write out the records taken so far."""

    def frame(self) -> "polars.DataFrame":
        """Return all records."""


class Sink(Protocol):
    """A place beside the run's folder where records are shown: TensorBoard, Weights and Biases, MLflow, ..."""

    def append(self, records: list[Record]) -> None:
        """Take the records of one step."""

    def finding(self, finding: Finding) -> None:
        """Take a finding, once a cause."""

    def close(self, report: "PathLike[str] | None") -> None:
        """Take the page if there is one, and write out what is pending."""


class Delivery:
    """Hands records on to a sink. What the sink refuses is kept, and offered again with the next records.

    The first failure is told by a ``SinkWarning``; ``close`` tells how much never arrived.

    Args:
        sink: Where records go: a ``RecordSink`` or a ``Sink``.
    """

    def __init__(self, sink: Any) -> None:
        self.sink = sink
        self._name = str(getattr(sink, "path", "") or type(sink).__name__)
        self._waiting: list[Record] = []
        self._dropped = 0
        self._error: BaseException | None = None

    def append(self, records: Iterable[Record]) -> None:
        """Offer records, after those that were refused before."""
        self._waiting += records
        if not self._waiting:
            return
        taken = self._call(self.sink.append, list(self._waiting))
        if not taken and not hasattr(self.sink, "unwritten"):  # a store keeps by itself what it could not write
            self._dropped += max(0, len(self._waiting) - KEPT)
            del self._waiting[:-KEPT]
            return
        self._waiting.clear()

    def flush(self) -> None:
        """Offer what was refused before, and have the sink write out what it has taken."""
        if self._waiting:
            self.append(())
        if hasattr(self.sink, "flush"):
            self._call(self.sink.flush)

    def tick(self) -> None:
        """Have a store write out what has waited long enough."""
        if hasattr(self.sink, "flush_if_due"):
            self._call(self.sink.flush_if_due)

    def finding(self, finding: Finding) -> None:
        """Hand on a finding, if the sink takes findings."""
        if hasattr(self.sink, "finding"):
            self._call(self.sink.finding, finding)

    def close(self, report: "PathLike[str] | None" = None) -> None:
        """Hand on the page, and tell what never arrived."""
        self.flush()
        if hasattr(self.sink, "close") and hasattr(self.sink, "finding"):
            self._call(self.sink.close, report)
        dropped = self._dropped + int(getattr(self.sink, "lost", 0))
        lost = len(self._waiting) + dropped + len(self._unwritten())
        if lost:
            warn_user(
                f"{self._name}: {counted(lost, 'record')} did not arrive there: {self._error}. scope.records() has "
                + ("the others" if dropped else "them all"),
                SinkWarning,
            )

    def waiting(self) -> list[Record]:
        """Return the records that have not arrived."""
        return [*self._unwritten(), *self._waiting]

    def _unwritten(self) -> list[Record]:
        return list(getattr(self.sink, "unwritten", ())) if self._error is not None else []

    def _call(self, act: Callable[..., object], *args: Any) -> bool:
        try:
            act(*args)
        except (Exception, SystemExit) as error:
            if self._error is None:
                warn_user(
                    f"{self._name} takes no records: {_line(error)}; training goes on, the records stay in memory",
                    SinkWarning,
                )
            self._error = error
            return False
        return True


def _line(error: BaseException) -> str:
    text = str(error).strip().split("\n")[0]
    return text or type(error).__name__
