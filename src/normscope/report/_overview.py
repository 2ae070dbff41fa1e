"""The parts of a page beside the studies: filters, sentences of texts, errata, theory."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from normscope import plots
from normscope.records import Answer, Erratum, Sentence
from normscope.records.answers import contrast_named, outcome_of
from normscope.report._condensed import theory_rows
from normscope.report._sections import Section
from normscope.report._words import amount_of, colour_class

#: With more verdicts than this a page is for looking things up: it gets filters, and studies are folded.
FEW = 5

Shown = Mapping[str, Any]  # a study as the template shows it


def filters(studies: Sequence[Shown]) -> list[tuple[str, str, list[str]]]:
    """Return filter definitions (label, key, values) for the tiles; none for a short list."""
    judged = [study for study in studies if study["verdict"]]
    found = [
        ("Answer", "answer", {study["answer"]["kind"] for study in judged}),
        ("Topic", "topic", {study["topic"] for study in judged if study["topic"]}),
        ("Source text", "texts", {text for study in judged for text in study["texts"]}),
    ]
    return [(label, key, sorted(values)) for label, key, values in found if len(judged) > FEW and len(values) > 1]


def sentences_by_text(
    sentences: Iterable[Sentence], studies: Mapping[str, Shown]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the sentences by text, each with the contrasts that test it and the word that it gets from them."""
    texts: dict[str, list[dict[str, Any]]] = {}
    for sentence in sentences:
        answers = [_tested(answer, studies.get(answer.study)) for answer in sentence.answers]
        row = {"place": sentence.place, "says": sentence.says, "note": sentence.note, "answers": answers}
        texts.setdefault(sentence.text, []).append(row)
    return list(texts.items())


def _tested(answer: Answer, study: Shown | None) -> dict[str, Any]:
    """Return the word that a sentence gets from a contrast, as the template shows it."""
    named = answer.study + (f", {answer.contrast}" if answer.contrast else "")
    verdict = study["verdict"] if study else None
    contrast = contrast_named(verdict, answer.contrast) if verdict else None
    word = outcome_of(answer, verdict) if verdict else None
    if study is None or contrast is None or word is None:
        return {"named": named, "anchor": study["anchor"] if study else "", "word": ""}
    shown = {"word": word.value, "sign": plots.outcome_icon(word), "class": colour_class(word.value)}
    return shown | {"named": named, "anchor": study["anchor"], "amount": amount_of(contrast)}


def errata_with_figures(errata: Iterable[Erratum], studies: Mapping[str, Shown]) -> list[dict[str, Any]]:
    """Return the errata, each with its studies and with the figure that shows it, if it is on the page."""
    rows = []
    for erratum in errata:
        shown = [studies[slug] for slug in erratum.studies if slug in studies]
        figures = [figure for study in shown for figure in (*study["figures"], *study["more_figures"])]
        named = [figure for figure in figures if figure["slug"] == erratum.figure]
        rows.append(
            {
                "where": erratum.where,
                "stated": erratum.stated,
                "holds": erratum.holds,
                "studies": _found(erratum.studies, studies),
                "figure": next(iter(named or figures), None),
            }
        )
    return rows


def theory(sections: Sequence[Section], studies: Sequence[Shown]) -> list[tuple[Shown, list[Any]]]:
    """Return for each study that has any its rows of measured and theoretical values."""
    found = [(study, list(theory_rows(section.tables))) for section, study in zip(sections, studies, strict=True)]
    return [(study, rows) for study, rows in found if rows]


def _found(slugs: Iterable[str], studies: Mapping[str, Shown]) -> list[tuple[str, Shown | None]]:
    return [(slug, studies.get(slug)) for slug in slugs]
