"""What the rules of a scope found, as a section of the page and as JSON."""

from typing import Any

from normscope import checking, rules
from normscope.plots import Table
from normscope.report import Checked, RuleNote, Section, counted


def checked(findings: checking.Findings, model: str) -> Checked:
    """Return what the rules found, as the formats of a check take it.

    Args:
        findings: The findings.
        model: Name of the model's class.
    """
    notes = [f"{code} was not run: {why}" for code, why in findings.not_run]
    return Checked(
        target=f"{model}, while training",
        findings=findings.found,
        ignored=findings.ignored,
        rules=[
            RuleNote(rule.CODE, rule.SLUG, rule.title(), rule.SEVERITY, rule.SAFE)
            for rule in rules.all()
            if rule.CODE in findings.rules
        ],
        failed=findings.unmeasured,
        notes=notes,
    )


def findings_section(findings: checking.Findings, steps: int) -> Section:
    """Return the findings of the rules as a section."""
    tables = [
        Table(
            "Findings",
            ("code", "severity", "what", "where", "measured", "first step", "last step"),
            tuple(_row(finding) for finding in findings),
            caption="Each cause once; `normscope explain CODE` has the page of a rule.",
        )
    ]
    left = [*findings.not_run, *findings.unmeasured]
    left += [
        (ignored.code, f"ignored at {', '.join(ignored.places)}: {reason}") for ignored, reason in findings.ignored
    ]
    if left:
        tables.append(Table("Not judged", ("code", "why"), tuple(left)))
    words = counted(len(findings), "finding") if len(findings) else "nothing was found"
    return Section(
        slug="rules",
        title="What the rules found while training",
        claim=f"Defects of normalization, by {counted(len(findings.rules), 'rule')} over "
        f"{counted(steps, 'training step')}: {words}.",
        page={},
        verdicts=(),
        tables=tuple(table for table in tables if table.rows),
        kind="check",
    )


def _row(finding: Any) -> tuple[Any, ...]:
    shown = ", ".join(finding.places[:4]) + (f" and {len(finding.places) - 4} more" if len(finding.places) > 4 else "")
    steps = (int(finding.details["first_step"]), int(finding.details["last_step"]))
    return finding.code, finding.severity.value, finding.message, shown or "the whole model", finding.measured, *steps
