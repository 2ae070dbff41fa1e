"""A scope, findings and verdicts in a few lines: as text for a terminal, and as HTML for a notebook."""

import html
from collections.abc import Sequence

from normscope.records import Finding
from normscope.records.notebook import card, head, items, paragraph
from normscope.report import counted
from normscope.seen._facts import CellFacts, Seen
from normscope.seen._sentences import Said, quiet, quiet_words, stands_out

_MANY = 12  # sentences of a summary


def headline(seen: Seen) -> str:
    """Return what was watched, in a sentence: records, steps, probes, findings."""
    steps = max((cell.steps for cell in seen.cells), default=0)
    probes = seen.frame["probe"].n_unique() if seen.frame.height else 0
    parts = [
        f"{counted(seen.frame.height, 'record')} of {counted(probes, 'probe')} in {counted(steps, 'training step')}"
    ]
    if len(seen.cells) > 1:
        parts.append(f"{len(seen.cells)} cells")
    if any(cell.rules is not None for cell in seen.cells):
        parts.append(counted(sum(len(cell.findings) for cell in seen.cells), "finding"))
    return f"{', '.join(parts)}."


def summary_of(seen: Seen) -> str:
    """Return what a scope saw, as plain text: what stands out, findings, what was not read and why, where it lies.

    Args:
        seen: Records and facts.
    """
    said = stands_out(seen)
    title = f"Scope on {seen.model}: {headline(seen)}" if seen.model else f"Scope: {headline(seen)}"
    lines = [title, *doubts(seen)]
    if seen.empty:
        lines.append("Nothing was recorded yet.")
    if said:
        lines += ["", "What stands out"]
        lines += [f"  {each.word:8} {said_text(each, seen)}" for each in said[:_MANY]]
        if len(said) > _MANY:
            lines.append(f"  and {counted(len(said) - _MANY, 'more sentence')} on the page: scope.report()")
    if words := quiet_words(quiet(seen, said)):
        lines += ["", words]
    found = [(cell, finding) for cell in seen.cells for finding in cell.findings]
    if found:
        lines += ["", "Findings of the rules"]
        lines += [f"  {each.code} {each.severity.value:8} {finding_text(each, cell, seen)}" for cell, each in found]
    elif any(cell.rules is not None for cell in seen.cells):
        lines += ["", "The rules found nothing."]
    if missing := not_read_of(seen.cells):
        lines += ["", "Not read"]
        lines += [f"  {code}: {why}" for code, why in missing]
    if seen.folder is not None:
        lines += ["", f"The records lie in {seen.folder}; page: normscope report {seen.folder}"]
    return "\n".join(lines)


def doubts(seen: Seen) -> list[str]:
    """Return why what was read may be wrong or is not whole, as sentences: they come before what stands out."""
    several = len(seen.cells) > 1
    wrong = [f"{f'{cell.cell}: ' if several else ''}{why}" for cell in seen.cells for why in cell.wiring]
    wrong = [f"What was read may be wrong: {why}" for why in dict.fromkeys(wrong)]
    return [text if text.endswith(("?", ".")) else f"{text}." for text in (*wrong, *seen.damaged)]


def said_text(said: Said, seen: Seen) -> str:
    """Return a sentence as plain text; with several cells, with the name of its own."""
    return (f"{said.where}: " if len(seen.cells) > 1 else "") + said.remark.says


def finding_text(finding: Finding, cell: CellFacts, seen: Seen) -> str:
    """Return a finding as plain text, with its places."""
    places = [place for place in finding.places if place]
    where = f" ({', '.join(places[:3])}{f' and {len(places) - 3} more' if len(places) > 3 else ''})" if places else ""
    return (f"{cell.cell}: " if len(seen.cells) > 1 else "") + finding.message + where


def not_read_of(cells: Sequence[CellFacts]) -> list[tuple[str, str]]:
    """Return (code, why) of what was not read, each once."""
    return [*dict.fromkeys((code, why) for cell in cells for code, why in cell.not_read.items())]


def html_of(seen: Seen) -> str:
    """Return what a scope saw as a small piece of HTML, for a notebook: no script, no style but its own.

    Args:
        seen: Records and facts.
    """
    said = stands_out(seen)
    title = f"Scope on {seen.model}" if seen.model else "Scope"
    parts = [paragraph(f"<b>{html.escape(title)}</b> {html.escape(headline(seen))}")]
    parts += [paragraph(f"<b>{html.escape(doubt)}</b>") for doubt in doubts(seen)]
    if said:
        parts += [head("What stands out"), items((each.word, said_text(each, seen)) for each in said[:_MANY])]
        if len(said) > _MANY:
            parts.append(paragraph(f"and {counted(len(said) - _MANY, 'more sentence')} on the page"))
    if words := quiet_words(quiet(seen, said)):
        parts.append(paragraph(html.escape(words)))
    found = [(cell, finding) for cell in seen.cells for finding in cell.findings]
    if found:
        parts += [
            head("Findings of the rules"),
            items((each.severity.value, f"{each.code} {finding_text(each, cell, seen)}") for cell, each in found),
        ]
    if missing := not_read_of(seen.cells):
        parts += [head("Not read"), items(("", f"{code}: {why}") for code, why in missing)]
    if seen.folder is not None:
        parts.append(paragraph(f"The records lie in <code>{html.escape(str(seen.folder))}</code>."))
    return card(parts)
