"""What the rules of a scope found, as facts of its cell and as JSON."""

from collections.abc import Mapping, Sequence

from torch.nn import Module

from normscope import checking, rules
from normscope.modules.wrapped import unwrap
from normscope.records import Finding
from normscope.report import Checked, RuleNote
from normscope.seen._facts import CellFacts, modules_of


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


def facts_of(
    cell: str,
    model: Module,
    steps: int,
    findings: checking.Findings | None = None,
    not_read: Mapping[str, str] | None = None,
    wiring: Sequence[str] = (),
) -> CellFacts:
    """Return the facts of a scope's cell.

    Args:
        cell: Its name.
        model: The model, also in wrappers.
        steps: Number of training steps so far.
        findings: What its rules found; None for a scope without rules.
        not_read: Why a probe was not read, by its code.
        wiring: Why what was read may be wrong, in sentences.
    """
    bare = unwrap(model)
    missing = dict(not_read or {})
    if findings is not None:
        missing |= dict(findings.not_run) | dict(findings.unmeasured)
    return CellFacts(
        cell,
        type(bare).__name__,
        modules_of(bare),
        steps,
        None if findings is None else tuple(findings.rules),
        () if findings is None else findings.found,
        () if findings is None else tuple(_on_purpose(finding, reason) for finding, reason in findings.ignored),
        missing,
        tuple(wiring),
    )


def _on_purpose(finding: Finding, reason: str) -> str:
    return f"{finding.code} is ignored at {', '.join(place or 'the whole model' for place in finding.places)}: {reason}"
