"""The page of a scope: one self-contained HTML file."""

from os import PathLike
from pathlib import Path

from normscope import report
from normscope._errors import UsageError
from normscope.plots import Table
from normscope.records import Finding
from normscope.report import Line, ScopePage, Section, counted
from normscope.seen._facts import CellFacts, Seen
from normscope.seen._panels import loss_of, sections_of
from normscope.seen._sentences import quiet, quiet_words, stands_out
from normscope.seen._words import doubts, headline, not_read_of

_SHOWN = 4  # places of a finding


def write(path: str | PathLike[str], seen: Seen) -> Path:
    """Write the page of a scope.

    Args:
        path: The HTML file to write.
        seen: Records and facts.

    Returns:
        The path written.

    Raises:
        UsageError: Nothing was recorded yet and no rule has run, or the path has another suffix than a page has.
        StoreError: The path cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() not in ("", ".html", ".htm"):
        raise UsageError(f"a page is written as .html, not as {target.suffix}: give a path that ends in .html")
    return report.write_scope(target, page_of(seen))


def html_page(seen: Seen) -> str:
    """Return the page of a scope as text.

    Args:
        seen: Records and facts.

    Raises:
        UsageError: Nothing was recorded yet, and no rule has run.
    """
    return report.scope_html(page_of(seen))


def page_of(seen: Seen) -> ScopePage:
    """Return what the page shows.

    Args:
        seen: Records and facts.

    Raises:
        UsageError: Nothing was recorded yet, and no rule has run.
    """
    if seen.empty:
        raise UsageError("nothing was recorded yet: run at least one step that is due")
    said = stands_out(seen)
    several = len(seen.cells) > 1
    return ScopePage(
        title=f"What the scope saw: {seen.model}" if seen.model else "What the scope saw",
        lede=headline(seen),
        doubts=doubts(seen),
        lines=[
            Line(
                each.remark.says.replace(" %", "\u00a0%"),
                each.word,
                each.probe.replace("_", "-"),
                each.where if several else "",
            )
            for each in said
        ],
        quiet=" ".join(filter(None, [quiet_words(quiet(seen, said)), _nothing_found(seen)])),
        findings=_findings(seen),
        loss=loss_of(seen),
        panels=sections_of(seen, said),
        not_read=not_read_of(seen.cells),
        provenance=seen.provenance,
    )


def _whole(says: str) -> str:
    """Keep a number and its percent sign on one line."""
    return says.replace(" %", "\u00a0%")


def _judged(seen: Seen) -> list[CellFacts]:
    return [cell for cell in seen.cells if cell.rules is not None and cell.steps]


def _nothing_found(seen: Seen) -> str:
    """Return the sentence on rules that ran and found nothing; empty where they found something or did not run."""
    judged = _judged(seen)
    if not judged or any(cell.findings or cell.notes for cell in judged):
        return ""
    rules = counted(len({code for cell in judged for code in cell.rules or ()}), "rule")
    return f"{rules} looked for defects of normalization and found nothing."


def _findings(seen: Seen) -> Section | None:
    """Return the findings of the rules as a section; None where there are none."""
    judged = _judged(seen)
    if not any(cell.findings or cell.notes for cell in judged):
        return None
    several = len(seen.cells) > 1
    rows = [((cell.cell,) if several else ()) + _row(finding) for cell in judged for finding in cell.findings]
    columns = ("code", "severity", "what", "where", "measured", "first step", "last step")
    table = Table(
        "Findings",
        (("cell",) if several else ()) + columns,
        tuple(rows),
        caption="Each cause once; `normscope explain CODE` has the page of a rule.",
    )
    rules = len({code for cell in judged for code in cell.rules or ()})
    steps = max(cell.steps for cell in judged)
    return Section(
        slug="rules",
        title="What the rules found while training",
        claim=f"Defects of normalization, by {counted(rules, 'rule')} over {counted(steps, 'training step')}: "
        f"{counted(len(rows), 'finding') if rows else 'nothing was found'}.",
        page={},
        verdicts=(),
        tables=(table,) if rows else (),
        notes=tuple(note for cell in judged for note in cell.notes),
        kind="check",
    )


def _row(finding: Finding) -> tuple[object, ...]:
    places = [place or "the whole model" for place in finding.places]
    where = ", ".join(places[:_SHOWN]) + (f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else "")
    steps = (finding.details.get(name) for name in ("first_step", "last_step"))
    seen_at = tuple(None if step is None else int(step) for step in steps)
    return (finding.code, finding.severity.value, finding.message, where, finding.measured, *seen_at)
