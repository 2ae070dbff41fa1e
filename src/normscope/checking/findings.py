"""What a check found, and what became of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from normscope.evidence.gap import Gap
from normscope.records import Finding, Severity, notebook
from normscope.records.numbers import counted
from normscope.report import LossNote, loss_words


class RuleWarning(UserWarning):
    """Rules failed by an exception that no rule should raise; everything else goes on."""


@dataclass(frozen=True)
class Findings(Sequence[Finding]):
    """What a check found, worst first.

    Attributes:
        found: The findings.
        ignored: Findings that the case or a module says are on purpose, with the reason.
        gap: Where the loss of evaluation comes from; None where it was not measured, or a loss is not finite: a note
            says so.
        rules: Codes of the rules that ran.
        unmeasured: Codes of rules (``"gap"``: the gap) whose evidence could not be had, and why: values that are not
            finite, a pass that raises though the training runs, or a failure of the rule itself.
        not_run: Codes of rules that were asked for and not run, and why: they have waited longer than the time limit,
            or they cannot run in a scope.
        notes: Sentences on the whole model: norms of classes that the rules do not know, say.
    """

    found: tuple[Finding, ...]
    ignored: tuple[tuple[Finding, str], ...] = ()
    gap: Gap | None = None
    rules: tuple[str, ...] = ()
    unmeasured: tuple[tuple[str, str], ...] = ()
    not_run: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, index: Any) -> Any:
        return self.found[index]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.found)

    def __str__(self) -> str:
        """Return the findings as text: a line each, and what was not judged and why."""
        lines = [f"{counted(len(self.found), 'finding')} of {counted(len(self.rules), 'rule')}"]
        lines += [f"{each.severity.value} {each.code} {each.message} {_places(each)}".rstrip() for each in self.found]
        lines += [f"not judged: {code}: {why}" for code, why in (*self.unmeasured, *self.not_run)]
        lines += [f"ignored: {each.code}: {reason}" for each, reason in self.ignored]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        """Return the findings for a notebook, and what was not judged and why."""
        found = f"{counted(len(self.found), 'finding')} of {counted(len(self.rules), 'rule')}"
        parts = [notebook.paragraph(f"<b>{found}</b>")]
        if self.found:
            rows = [(each.severity.value, f"{each.code} {each.message} {_places(each)}") for each in self.found]
            parts.append(notebook.items(rows))
        left = [("not judged", f"{code}: {why}") for code, why in (*self.unmeasured, *self.not_run)]
        left += [("ignored", f"{each.code} {_places(each)}: {reason}") for each, reason in self.ignored]
        left += [("note", note) for note in self.notes]
        return notebook.card([*parts, notebook.items(left)] if left else parts)

    @property
    def worst(self) -> Severity | None:
        """The severity of the worst finding; None if there is none."""
        return min((finding.severity for finding in self.found), key=lambda severity: severity.rank, default=None)


@dataclass(frozen=True, slots=True)
class Fixed:
    """What became of one finding.

    Attributes:
        finding: The finding.
        done: What was done; empty if nothing was.
        why_not: Why nothing was done, or why what was done was taken back.
        losses: Losses on the same batches before and after the fix; with a fix that was taken back, those after it
            while it stood. Empty where nothing was done, or no loss can be had.
    """

    finding: Finding
    done: str = ""
    why_not: str = ""
    losses: tuple[LossNote, ...] = ()

    def __str__(self) -> str:
        """Return in a line what was done, or why nothing was, with the losses before and after."""
        where = f"{self.finding.code} {_places(self.finding)}".rstrip()
        told = f"fixed {where}: {self.done}" if self.done else f"not fixed {where}: {self.why_not}"
        return f"{told}; loss {loss_words(self.losses)}" if self.losses else told


def _places(finding: Finding) -> str:
    """Return where a finding shows, in brackets; nothing for the whole model."""
    named = [f"`{place}`" for place in finding.places[:4] if place]
    more = f" and {len(finding.places) - 4} more" if len(finding.places) > 4 else ""
    return f"({', '.join(named)}{more})" if named else ""
