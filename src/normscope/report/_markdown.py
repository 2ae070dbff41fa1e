"""Condensed evidence as a Markdown page, or as the table of verdicts within a page of the user's own."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from normscope.records import Sentence, standing
from normscope.records.answers import capital, contrast_named, headline, outcome_of
from normscope.report._condensed import CondensedEvidence, CondensedStudy
from normscope.report._marks import between_marks
from normscope.report._sections import duration
from normscope.report._words import amount_of, is_identity, tally

#: Marks in a file: only the text between them is replaced, by the table of verdicts.
BEGIN, END = "<!-- evidence: begin -->", "<!-- evidence: end -->"
_COLUMNS = ("claim", "answer", "effect", "in a sentence")


def into(path: str | Path, evidence: CondensedEvidence) -> str:
    """Return a file's new text: the whole page, or the old text with the table of verdicts between its marks.

    Raises:
        StoreError: The file cannot be read, or has one mark without the other.
    """
    advice = f"needs {BEGIN} and, after it, {END}: put both, or neither for the whole page"
    filled = between_marks(path, re.escape(BEGIN), END, lambda _: top(evidence), advice=advice)
    return page(evidence) if filled is None else filled


def top(evidence: CondensedEvidence) -> str:
    """Return how many claims have each answer, and the table of all answers: experiments, then identities."""
    rows = [_answered(study) for study in _ordered(evidence.studies)]
    return f"{_tally(evidence)}\n\n{markdown_table(('claim', 'answer', 'effect'), rows)}"


def page(evidence: CondensedEvidence) -> str:
    """Return the whole page: verdicts by topic, theory, what texts say, errata, times. The same text every time."""
    parts = ["# Evidence", evidence.lede, _tally(evidence), *_made(evidence), *_verdicts(evidence)]
    parts += [*_theory(evidence), *_sentences(evidence), *_errata(evidence), *_times(evidence)]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _tally(evidence: CondensedEvidence) -> str:
    return tally([study.verdict for study in evidence.studies])


def _ordered(studies: Sequence[CondensedStudy]) -> list[CondensedStudy]:
    """Return the studies in their order, identities after all others."""
    return sorted(studies, key=lambda study: is_identity(study.verdict))


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
        f"Effects are in natural units, with their {levels} intervals over seeds. The headline of a claim is the "
        "contrast nearest to its source; a claim depends on a condition where another condition has another word. "
        "Holm's correction holds over all headlines on this page. Identities are algebra, checked in float64, and "
        "are not counted with experiments. `normscope explain SLUG` explains a study."
    )
    commands = "\n".join(evidence.commands)
    return ["Made by", f"```sh\n{commands}\n```" if commands else "", conditions if studies else "", reading]


def _verdicts(evidence: CondensedEvidence) -> list[str]:
    """Return the answers by topic, those of identities apart, and the contrasts of every study."""
    parts = []
    experiments = [study for study in evidence.studies if not is_identity(study.verdict)]
    for topic in sorted({study.topic for study in experiments}):
        rows = [(*_answered(s), headline(s.verdict)) for s in experiments if s.topic == topic]
        parts += [f"## {_text(capital(topic))}", markdown_table(_COLUMNS, rows)]
    if identities := [study for study in evidence.studies if is_identity(study.verdict)]:
        parts += ["## Identities", markdown_table(_COLUMNS, [(*_answered(s), headline(s.verdict)) for s in identities])]
    return [*parts, *_contrasts(evidence)]


def _contrasts(evidence: CondensedEvidence) -> list[str]:
    """Return all contrasts of the studies that have several."""
    rows = []
    for study in evidence.studies:
        for index, each in enumerate((study.verdict, *study.verdict.parts) if study.verdict.parts else ()):
            listed = [condition.value for condition in each.conditions if condition.name != "arms"]
            where = f"`{study.slug}`" if index == 0 else ""
            rows.append((where, each.claim, ", ".join(listed) or each.endpoint, amount_of(each), each.outcome.value))
    if not rows:
        return []
    return ["## All contrasts", markdown_table(("study", "claim", "condition", "effect (interval)", "word"), rows)]


def _theory(evidence: CondensedEvidence) -> list[str]:
    rows = [
        (f"`{study.slug}`", row.quantity, row.measured, row.theory, row.ratio)
        for study in evidence.studies
        for row in study.theory
    ]
    if not rows:
        return []
    intro = "Where theory gives a number: the mean over seeds, and its ratio to theory's."
    columns = ("study", "quantity", "measured", "theory", "ratio")
    return ["## Measured against theory", intro, markdown_table(columns, rows)]


def _sentences(evidence: CondensedEvidence) -> list[str]:
    if not evidence.sentences:
        return []
    said = (
        "Each sentence of the texts where this project began, in short, with the word of the contrast that tests it, "
        "turned round where the sentence denies what the study claims."
    )
    parts = ["## What the texts say, and whether it holds", said]
    for text in dict.fromkeys(sentence.text for sentence in evidence.sentences):
        rows = [
            (sentence.says, sentence.place, _tested(evidence, sentence))
            for sentence in evidence.sentences
            if sentence.text == text
        ]
        parts += [f"### {_text(text)}", markdown_table(("it says", "where", "answer"), rows)]
    return parts


def _errata(evidence: CondensedEvidence) -> list[str]:
    if not evidence.errata:
        return []
    rows = [
        (erratum.where, erratum.stated, erratum.holds, _answers(evidence, erratum.studies))
        for erratum in evidence.errata
    ]
    said = "What is stated wrongly or left open there, what holds instead, and the studies whose figures show it."
    return ["## Errata of texts and papers", said, markdown_table(("where", "stated", "holds", "studies"), rows)]


def _times(evidence: CondensedEvidence) -> list[str]:
    if not evidence.studies:
        return []
    rows = [(f"`{s.slug}`", duration(s.seconds), f"`{s.command}`") for s in evidence.studies]
    total = duration(math.fsum(study.seconds for study in evidence.studies))
    return [
        "## Time and commands",
        f"{total} in all, one cell after the other.",
        markdown_table(("study", "time", "command"), rows),
    ]


def _answered(study: CondensedStudy) -> tuple[str, str, str]:
    """Return claim, answer with the networks and data that it is about, and effect."""
    verdict = study.verdict
    here = f"<br>{verdict.here}" if verdict.here and not is_identity(verdict) else ""
    claim = f"{verdict.claim}<br>`{study.slug}`"
    return claim, f"**{standing(verdict)}**{here}", amount_of(verdict) or "–"


def _answers(evidence: CondensedEvidence, slugs: Sequence[str]) -> str:
    words = {study.slug: standing(study.verdict) for study in evidence.studies}
    return "<br>".join(f"`{slug}`" + (f" {words[slug]}" if slug in words else "") for slug in slugs)


def _tested(evidence: CondensedEvidence, sentence: Sentence) -> str:
    """Return the contrasts that test a sentence, each with the word that the sentence gets from it, and its note."""
    verdicts = {study.slug: study.verdict for study in evidence.studies}
    said = []
    for each in sentence.answers:
        named = f"`{each.study}`" + (f", {each.contrast}" if each.contrast else "")
        verdict = verdicts.get(each.study)
        word = outcome_of(each, verdict) if verdict else None
        contrast = contrast_named(verdict, each.contrast) if verdict else None
        amount = f": {amount_of(contrast)}" if contrast and amount_of(contrast) else ""
        said.append(f"{named} **{word.value}**{amount}" if word else named)
    return "<br>".join([*said, *filter(None, [sentence.note])])


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table: cells stay in their cells, and no HTML in them but a line break is live."""
    lines = [columns, ["---"] * len(columns), *([_text(value) for value in row] for row in rows)]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _text(value: str) -> str:
    """Keep a cell in its cell and on its line, and any HTML but our own line breaks inert."""
    flat = re.sub(r"\s+", " ", value).strip().replace("|", "\\|")
    return re.sub(r"<(?!br>)", "&lt;", flat)
