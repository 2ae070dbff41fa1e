"""What an arm of a comparison is: which norms went, which stayed and why, and how the function began."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from normscope.records.json import build, plain
from normscope.surgery._report import Change, Skip
from normscope.surgery.functional import FunctionalCall


@dataclass(frozen=True, slots=True)
class ArmReport:
    """An arm: what was done to make it, or what would be done.

    Attributes:
        arm: Its name.
        changes: The norms that are changed, by qualified name, and what each becomes.
        kept: Norms that are of the arm's kind already.
        left: Norms that cannot be changed, with the reason.
        functional: Norms that the model calls as functions, which no surgery replaces.
        activations: Activations that the model calls as functions, which no probe hears.
        relation: The arm's initial function to that of the model as it is: ``"equal"``; ``"rescaled"``, where weights
            are scaled so that signals keep the scale that they had; or ``"different"``.
        difference: Distance of the outputs at the example, over the length of the model's own; None without an example.
        scaled: Factors of the layers whose weights were scaled. All other weights outside the norms are as they were,
            bit for bit.
        notes: What concerns the whole model.
    """

    arm: str
    changes: tuple[Change, ...] = ()
    kept: tuple[str, ...] = ()
    left: tuple[Skip, ...] = ()
    functional: tuple[FunctionalCall, ...] = ()
    activations: tuple[FunctionalCall, ...] = ()
    relation: str = "equal"
    difference: float | None = None
    scaled: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_own(self) -> bool:
        """Whether the arm is the model as it is: there is nothing to change."""
        return not self.changes

    def refuses(self) -> str | None:
        """Return in one line why this is no arm of its own, or None if it is one."""
        if self.changes or self.arm == "own":
            return None
        if self.kept:
            return f"{self.arm}: the norms of the model are of this kind already, so this arm is the model as it is"
        if self.left:
            return f"{self.arm}: no norm can be changed: {_some(self.left)}"
        if self.functional:
            return (
                f"{self.arm}: the model has norms only as functions, which cannot be replaced: {_some(self.functional)}"
            )
        return f"{self.arm}: a model without norms"

    def incomplete(self) -> str | None:
        """Return in one line which norms the arm still has though it is to be without them, or None."""
        if self.is_own or not (self.left or self.functional):
            return None
        return f"the arm {self.arm} still has {_some((*self.left, *self.functional))}"

    def unheard(self) -> str | None:
        """Return in one line which activations no probe hears, or None."""
        if not self.activations:
            return None
        return f"activations that are called as functions are not heard by probes: {_some(self.activations)}"

    def with_notes(self, notes: Iterable[str]) -> "ArmReport":
        """Return the same report with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    @property
    def counts(self) -> Mapping[str, int]:
        """How many norms were changed, are kept, are left, and are called as functions."""
        of = {"changed": self.changes, "kept": self.kept, "left": self.left, "called as functions": self.functional}
        return {what: len(norms) for what, norms in of.items()}

    @property
    def distance(self) -> str:
        """By how much the outputs differ from the model's own, in words in brackets; empty if it is not known."""
        return "" if self.difference is None else f"(outputs differ by {self.difference:.2g} of their length)"

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON values, of which ``from_json`` makes it again."""
        found: dict[str, Any] = plain(self)
        return found

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> "ArmReport":
        """Make the report that ``as_json`` wrote.

        Raises:
            ValueError: It is none.
        """
        report: ArmReport = build(cls, found, "the report of an arm")
        return report

    def __str__(self) -> str:
        """Say all of it, a line each."""
        counts = ", ".join(f"{count} {what}" for what, count in self.counts.items())
        said = f"{self.arm}: {counts}; initial function {self.relation} {self.distance}"
        return "\n".join([said.rstrip(), *(f"  {line}" for line in self.lines())])

    def lines(self) -> list[str]:
        """Say what was done and what not, norm by norm."""
        lines = [f"changed {change}" for change in self.changes]
        lines += [f"kept    {path}" for path in self.kept]
        lines += [f"left    {skip}" for skip in self.left]
        lines += [f"left    {norm}" for norm in self.functional]
        lines += [f"unheard {call}" for call in self.activations]
        lines += [f"note    {note}" for note in self.notes]
        return lines


def _some(things: tuple[object, ...], most: int = 3) -> str:
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return "; ".join(map(str, things[:most])) + more
