"""The result of a check, as the formats take it: plain words and numbers, no network and no tensor."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from normscope.records import Finding, Severity

_SHOWN = 3


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
        errors: Standard error of each step's rise over batches; 0 where it is not known, as for all if left out.
    """

    train: float
    eval: float
    batches: int
    shares: tuple[tuple[str, float, str], ...] = ()
    errors: tuple[float, ...] = ()

    def rows(self) -> list[tuple[str, float, str, float]]:
        """Return the steps, each with its error."""
        errors = self.errors or (0.0,) * len(self.shares)
        return [(*share, error) for share, error in zip(self.shares, errors, strict=True)]


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
        settings: The file with settings that were heeded; empty if there is none.
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
    settings: str = ""

    def counts(self) -> dict[Severity, int]:
        """Return how many findings there are of each severity."""
        return {severity: sum(finding.severity is severity for finding in self.findings) for severity in Severity}


def loss_words(losses: Sequence[LossNote]) -> str:
    """Return losses before and after a fix in words."""
    return "; ".join(f"of {loss.of} {loss.before:.4g} before, {loss.after:.4g} after" for loss in losses)


def place_words(place: str) -> str:
    """Return a place in words: the whole model has no path."""
    return place or "the whole model"


def shortened(places: Sequence[str]) -> str:
    """Return the first places in words, and how many more there are."""
    shown = [place_words(place) for place in places]
    if len(shown) <= _SHOWN + 1:  # "and 1 more" is as long as the last place
        return ", ".join(shown)
    return f"{', '.join(shown[:_SHOWN])} and {len(shown) - _SHOWN} more"


def kept(fixed: FixNote) -> str:
    """Return what a fix changed that a file can keep, and what else, in words."""
    tensors = f"{fixed.tensors} {'tensor' if fixed.tensors == 1 else 'tensors'} of the state dict"
    if not fixed.beyond:
        return f"changed {tensors}" if fixed.tensors else "changed nothing that is kept"
    return f"changed {tensors} and, which no state dict holds, {', '.join(fixed.beyond)}"


def summary(checked: Checked) -> str:
    """Return the line of counts."""
    plural = {Severity.ERROR: "errors", Severity.WARNING: "warnings"}
    counted = [
        f"{n} {severity.value if n == 1 else plural.get(severity, severity.value)}"
        for severity, n in checked.counts().items()
        if n
    ]
    ran = f"{len(checked.rules)} {'rule' if len(checked.rules) == 1 else 'rules'}"
    took = f" in {checked.seconds:.1f} s" if checked.seconds else ""
    parts = [f"{', '.join(counted) or 'nothing found'}: {ran} looked at {checked.target}{took}"]
    if checked.settings:
        parts.append(f"settings of {checked.settings}")
    if checked.ignored:
        parts.append(f"{len(checked.ignored)} ignored on purpose")
    if checked.failed:
        parts.append(f"{len(checked.failed)} not judged")
    fixable = [finding for finding in checked.findings if finding.fixable]
    safe = sum(finding.safe for finding in fixable)
    if safe:
        parts.append(f"{safe} fixable with --fix")
    if len(fixable) > safe:
        parts.append(f"{len(fixable) - safe} {'more' if safe else 'fixable'} with --unsafe-fixes")
    return "; ".join(parts)
