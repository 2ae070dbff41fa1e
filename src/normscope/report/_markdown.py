"""Condensed evidence as a Markdown page, or as the table of verdicts within a page of one's own."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normscope import plots
from normscope._errors import StoreError
from normscope.records import Outcome
from normscope.report._condensed import Condensed, Evidence
from normscope.report._sections import duration

#: A file that holds these keeps all but what lies between them, where the table of verdicts goes.
BEGIN, END = "<!-- evidence: begin -->", "<!-- evidence: end -->"
_COLUMNS = ("claim", "verdict", "effect (interval)", "margin", "seeds", "why")


def into(path: str | Path, evidence: Evidence) -> str:
    """Return what a file is to hold: the whole page, or its own text with the table of verdicts between its marks.

    Raises:
        StoreError: The file cannot be read, or has one mark without the other.
    """
    target = Path(path)
    try:
        there = target.read_text(encoding="utf-8") if target.is_file() else ""
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {target}: {getattr(error, 'strerror', None) or 'it is no text'}") from None
    if BEGIN not in there and END not in there:
        return page(evidence)
    head, begun, rest = there.partition(BEGIN)
    _, ended, tail = rest.partition(END)
    if not begun or not ended:
        raise StoreError(f"{target} needs {BEGIN} and, after it, {END}: put both, or neither for the whole page")
    return f"{head}{BEGIN}\n{top(evidence)}{END}{tail}"


def top(evidence: Evidence) -> str:
    """Return how many claims came out how, and the table of all verdicts, by card."""
    rows = [(_claim(study), *_judged(study)[:2]) for study in evidence.studies]
    return f"{_tally(evidence)}\n\n{_table(('claim', 'verdict', 'effect (interval)'), rows)}"


def page(evidence: Evidence) -> str:
    """Return the whole page: verdicts by topic, theory, what texts say, errata, times. The same text every time."""
    parts = ["# Evidence", evidence.lede, _tally(evidence), *_made(evidence), *_verdicts(evidence)]
    parts += [*_theory(evidence), *_sentences(evidence), *_errata(evidence), *_times(evidence)]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _tally(evidence: Evidence) -> str:
    counts = Counter(study.verdict.outcome for study in evidence.studies)
    said = ", ".join(f"{counts[outcome]} {outcome.value}" for outcome in Outcome)
    return f"{len(evidence.studies)} {'claim' if len(evidence.studies) == 1 else 'claims'} judged: {said}."


def _made(evidence: Evidence) -> list[str]:
    """Say what made the numbers, and how they are read."""

    def each(values: Sequence[Any]) -> str:
        return " and ".join(sorted({str(value) for value in values}))

    studies = evidence.studies
    cores = each([study.cores for study in studies if study.cores is not None])
    cpus = each([study.cpu for study in studies if study.cpu])
    levels = each([f"{study.verdict.effect.level * 100:.3g} %" for study in studies])
    conditions = (
        f"With normscope {each([s.normscope for s in studies])} and torch {each([s.torch for s in studies])}; "
        f"{', '.join(filter(None, [cpus, f'{cores} cores' if cores else '']))}; "
        f"preset {each([s.preset for s in studies])}, data {each([s.data for s in studies])}, "
        f"device {each([s.device for s in studies])}."
    )
    reading = (
        f"Effects are positive in the direction of the claim, with their {levels} intervals over seeds; ratios are "
        "written with ×, differences with a sign. The margin is the smallest effect that matters, fixed before the "
        "run. Holm's correction holds over all verdicts on this page. `normscope study show SLUG` explains a study."
    )
    commands = "\n".join(evidence.commands)
    return ["Made by", f"```sh\n{commands}\n```" if commands else "", conditions if studies else "", reading]


def _verdicts(evidence: Evidence) -> list[str]:
    parts = []
    for topic in sorted({study.topic for study in evidence.studies}):
        rows = [(_claim(s), *_judged(s)) for s in evidence.studies if s.topic == topic]
        parts += [f"## {_text(topic[:1].upper() + topic[1:])}", _table(_COLUMNS, rows)]
    return parts


def _theory(evidence: Evidence) -> list[str]:
    rows = [
        (f"`{study.slug}`", row.quantity, row.measured, row.theory, row.ratio)
        for study in evidence.studies
        for row in study.theory
    ]
    if not rows:
        return []
    said = "Where theory gives a number: the mean over seeds, and its ratio to theory's."
    return ["## Measured against theory", said, _table(("study", "quantity", "measured", "theory", "ratio"), rows)]


def _sentences(evidence: Evidence) -> list[str]:
    if not evidence.sentences:
        return []
    said = "Each claim of the texts where this project began, in short, and the studies that judge it."
    parts = ["## What the texts say, and which studies judge it", said]
    for text in dict.fromkeys(one.text for one in evidence.sentences):
        rows = [
            (one.says, one.place, _answers(evidence, one.studies) or one.note)
            for one in evidence.sentences
            if one.text == text
        ]
        parts += [f"### {_text(text)}", _table(("it says", "where", "studies"), rows)]
    return parts


def _errata(evidence: Evidence) -> list[str]:
    if not evidence.errata:
        return []
    rows = [(one.where, one.stated, one.holds, _answers(evidence, one.studies)) for one in evidence.errata]
    said = "What is stated wrongly or left open there, what holds instead, and the studies whose figures show it."
    return ["## Errata of texts and papers", said, _table(("where", "stated", "holds", "studies"), rows)]


def _times(evidence: Evidence) -> list[str]:
    if not evidence.studies:
        return []
    rows = [(f"`{s.slug}`", duration(s.seconds), f"`{s.command}`") for s in evidence.studies]
    total = duration(math.fsum(study.seconds for study in evidence.studies))
    return [
        "## Time and commands",
        f"{total} in all, one cell after the other.",
        _table(("study", "time", "command"), rows),
    ]


def _claim(study: Condensed) -> str:
    return f"{study.verdict.claim}<br>`{study.slug}`"


def _judged(study: Condensed) -> tuple[str, ...]:
    verdict, effect = study.verdict, study.verdict.effect
    words = plots.effect_words(effect, margin=verdict.margin)
    margin = plots.margin_words(verdict.margin, effect.scale)
    return f"**{verdict.outcome.value}**", words, margin, str(effect.n), verdict.reason


def _answers(evidence: Evidence, slugs: Sequence[str]) -> str:
    outcomes = {study.slug: study.verdict.outcome.value for study in evidence.studies}
    return "<br>".join(f"`{slug}`" + (f" {outcomes[slug]}" if slug in outcomes else "") for slug in slugs)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_text(value) for value in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _text(value: str) -> str:
    """Keep a cell in its cell and on its line, and any HTML but our own line breaks inert."""
    flat = re.sub(r"\s+", " ", value).strip().replace("|", "\\|")
    return re.sub(r"<(?!br>)", "&lt;", flat)
