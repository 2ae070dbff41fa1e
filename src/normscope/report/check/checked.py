"""The result of a check, as the formats take it: plain words and numbers, no network and no tensor."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from normscope.records import Finding, Severity


@dataclass(frozen=True, slots=True)
class RuleNote:
    """A rule that ran, described.

    Attributes:
        code: As ``NS102``.
        slug: Its name.
        title: What it finds, in a line.
        severity: Of its findings, where they do not say otherwise.
        safe: Whether its fix is safe.
        page: Its documentation by heading.
    """

    code: str
    slug: str
    title: str
    severity: Severity
    safe: bool = False
    page: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class GapNote:
    """The loss in training, the loss in evaluation, and the steps from one to the other.

    Attributes:
        train: Loss in training.
        eval: Loss in evaluation.
        batches: How many batches each is the mean over.
        shares: ``(cause, by how much the loss rises, explanation)`` of each step.
    """

    train: float
    eval: float
    batches: int
    shares: tuple[tuple[str, float, str], ...] = ()


@dataclass(frozen=True, slots=True)
class LossNote:
    """A loss before a fix and after it, on the same batches.

    Attributes:
        of: The loss: ``"training"``, ``"evaluation"`` or ``"evaluation of the averaged weights"``.
        before: Its mean over some batches before.
        after: The same after it.
    """

    of: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class FixNote:
    """The outcome of the fix of one finding.

    Attributes:
        finding: The finding.
        done: The change that was made; empty if there was none.
        why_not: Why nothing was changed.
        tensors: Tensors of state dicts that it changed, added or took away.
        beyond: Changes that no state dict holds, in words.
        losses: Losses before and after it; with a fix that was taken back, those after it while it stood.
    """

    finding: Finding
    done: str = ""
    why_not: str = ""
    tensors: int = 0
    beyond: tuple[str, ...] = ()
    losses: tuple[LossNote, ...] = ()


@dataclass(frozen=True, slots=True)
class Checked:
    """The result of a check.

    Attributes:
        target: The checked target, in the user's words.
        findings: The findings, worst first; after fixes, those that remain.
        ignored: Findings that are there on purpose, each with the reason.
        rules: The rules that ran.
        gap: Where the loss of evaluation comes from, if that was measured.
        failed: Codes of rules that could not be judged, and why.
        fixes: The outcome of each fix; empty if no fixes were asked for.
        saved: Files written with the repaired state.
        notes: Sentences without which the result would be misread.
        file: The file in which the set-up is made, if there is one.
        line: Line of that file.
        seconds: Time that the check took.
    """

    target: str
    findings: Sequence[Finding] = ()
    ignored: Sequence[tuple[Finding, str]] = ()
    rules: Sequence[RuleNote] = ()
    gap: GapNote | None = None
    failed: Sequence[tuple[str, str]] = ()
    fixes: Sequence[FixNote] = ()
    saved: Sequence[str] = ()
    notes: Sequence[str] = field(default=())
    file: str = ""
    line: int = 0
    seconds: float = 0.0

    def counts(self) -> dict[Severity, int]:
        """Return how many findings there are of each severity."""
        return {severity: sum(finding.severity is severity for finding in self.findings) for severity in Severity}


def place_words(place: str) -> str:
    """Return a place in words: the whole model has no path."""
    return place or "the whole model"
