"""Condensed evidence as a Markdown page, or as the table of verdicts within a page of the user's own."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normscope import plots
from normscope._errors import StoreError
from normscope.records import Outcome
from normscope.report._condensed import CondensedEvidence, CondensedStudy
from normscope.report._sections import duration

#: Marks in a file: only the text between them is replaced, by the table of verdicts.
BEGIN, END = "<!-- evidence: begin -->", "<!-- evidence: end -->"
_COLUMNS = ("claim", "verdict", "effect (interval)", "margin", "seeds", "why")


def into(path: str | Path, evidence: CondensedEvidence) -> str:
    """Return a file's new text: the whole page, or the old text with the table of verdicts between its marks.

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


def top(evidence: CondensedEvidence) -> str:
    """Return how many claims have each outcome, and the table of all verdicts, by card."""
    rows = [(_claim(study), *_judged(study)[:2]) for study in evidence.studies]
    return f"{_tally(evidence)}\n\n{_table(('claim', 'verdict', 'effect (interval)'), rows)}"


def page(evidence: CondensedEvidence) -> str:
    """Return the whole page: verdicts by topic, theory, what texts say, errata, times. The same text every time."""
    parts = ["# Evidence", evidence.lede, _tally(evidence), *_made(evidence), *_verdicts(evidence)]
    parts += [*_theory(evidence), *_sentences(evidence), *_errata(evidence), *_times(evidence)]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _tally(evidence: CondensedEvidence) -> str:
    counts = Counter(study.verdict.outcome for study in evidence.studies)
    said = ", ".join(f"{counts[outcome]} {outcome.value}" for outcome in Outcome)
    return f"{len(evidence.studies)} {'claim' if len(evidence.studies) == 1 else 'claims'} judged: {said}."


def _made(evidence: CondensedEvidence) -> list[str]:
    """Return the commands and conditions that made the numbers, and how to read them."""

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


def _verdicts(evidence: CondensedEvidence) -> list[str]:
    parts = []
    for topic in sorted({study.topic for study in evidence.studies}):
        rows = [(_claim(s), *_judged(s)) for s in evidence.studies if s.topic == topic]
        parts += [f"## {_text(topic[:1].upper() + topic[1:])}", _table(_COLUMNS, rows)]
    return parts


def _theory(evidence: CondensedEvidence) -> list[str]:
    rows = [
        (f"`{study.slug}`", row.quantity, row.measured, row.theory, row.ratio)
        for study in evidence.studies
        for row in study.theory
    ]
    if not rows:
        return []
    intro = "Where theory gives a number: the mean over seeds, and its ratio to theory's."
    return ["## Measured against theory", intro, _table(("study", "quantity", "measured", "theory", "ratio"), rows)]


def _sentences(evidence: CondensedEvidence) -> list[str]:
    if not evidence.sentences:
        return []
    said = "Each claim of the texts where this project began, in short, and the studies that judge it."
    parts = ["## What the texts say, and which studies judge it", said]
    for text in dict.fromkeys(sentence.text for sentence in evidence.sentences):
        rows = [
            (sentence.says, sentence.place, _answers(evidence, sentence.studies) or sentence.note)
            for sentence in evidence.sentences
            if sentence.text == text
        ]
        parts += [f"### {_text(text)}", _table(("it says", "where", "studies"), rows)]
    return parts


def _errata(evidence: CondensedEvidence) -> list[str]:
    if not evidence.errata:
        return []
    rows = [
        (erratum.where, erratum.stated, erratum.holds, _answers(evidence, erratum.studies))
        for erratum in evidence.errata
    ]
    said = "What is stated wrongly or left open there, what holds instead, and the studies whose figures show it."
    return ["## Errata of texts and papers", said, _table(("where", "stated", "holds", "studies"), rows)]


def _times(evidence: CondensedEvidence) -> list[str]:
    if not evidence.studies:
        return []
    rows = [(f"`{s.slug}`", duration(s.seconds), f"`{s.command}`") for s in evidence.studies]
    total = duration(math.fsum(study.seconds for study in evidence.studies))
    return [
        "## Time and commands",
        f"{total} in all, one cell after the other.",
        _table(("study", "time", "command"), rows),
    ]


def _claim(study: CondensedStudy) -> str:
    return f"{study.verdict.claim}<br>`{study.slug}`"


def _judged(study: CondensedStudy) -> tuple[str, ...]:
    verdict, effect = study.verdict, study.verdict.effect
    words = plots.effect_words(effect, margin=verdict.margin)
    margin = plots.margin_words(verdict.margin, effect.scale)
    return f"**{verdict.outcome.value}**", words, margin, str(effect.n), verdict.reason


def _answers(evidence: CondensedEvidence, slugs: Sequence[str]) -> str:
    outcomes = {study.slug: study.verdict.outcome.value for study in evidence.studies}
    return "<br>".join(f"`{slug}`" + (f" {outcomes[slug]}" if slug in outcomes else "") for slug in slugs)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_text(value) for value in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _text(value: str) -> str:
    """Keep a cell in its cell and on its line, and any HTML but our own line breaks inert."""
    flat = re.sub(r"\s+", " ", value).strip().replace("|", "\\|")
    return re.sub(r"<(?!br>)", "&lt;", flat)
