"""What an arm of a comparison is: which norms went, which stayed and why, and how the function began."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from normscope.surgery._report import Change, Skip
from normscope.surgery.functional import FunctionalNorm

Relation = Literal["equal", "rescaled", "different"]


@dataclass(frozen=True, slots=True)
class ArmReport:
    """An arm: what was done to make it, or what would be done.

    Attributes:
        arm: Its name.
        changes: The norms that are changed, by qualified name, and what each becomes.
        kept: Norms that are of the arm's kind already.
        left: Norms that cannot be changed, with the reason.
        functional: Norms that the model calls as functions, which no surgery replaces.
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
    functional: tuple[FunctionalNorm, ...] = ()
    relation: Relation = "equal"
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
        return f"{self.arm}: left as they are: {_some((*self.left, *self.functional))}"

    def with_notes(self, notes: Iterable[str]) -> "ArmReport":
        """Return the same report with further notes."""
        return replace(self, notes=(*self.notes, *notes))

    def __str__(self) -> str:
        """Say all of it, a line each."""
        own = "" if self.difference is None else f" (outputs differ by {self.difference:.2g} of their length)"
        lines = [
            f"{self.arm}: {len(self.changes)} changed, {len(self.kept)} kept, {len(self.left)} left, "
            f"{len(self.functional)} called as functions; initial function {self.relation}{own}"
        ]
        lines += [f"  changed {change}" for change in self.changes]
        lines += [f"  kept    {path}" for path in self.kept]
        lines += [f"  left    {skip}" for skip in self.left]
        lines += [f"  left    {norm}" for norm in self.functional]
        lines += [f"  note    {note}" for note in self.notes]
        return "\n".join(lines)


def _some(things: tuple[object, ...], most: int = 3) -> str:
    more = f" and {len(things) - most} more" if len(things) > most else ""
    return "; ".join(map(str, things[:most])) + more
