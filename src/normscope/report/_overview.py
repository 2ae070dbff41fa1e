"""The parts of a page before and after the studies: strips, filters, sentences of texts, errata, theory."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from normscope.records import Erratum, Sentence, Verdict
from normscope.report._condensed import theory_rows
from normscope.report._sections import Section

#: With more verdicts than this a page is for looking things up: it gets strips and filters, and studies are folded.
FEW = 5
#: Replaces the text's title where a study judges a claim that no text makes.
EXTENSION = "None of them: an extension"
WIDTH, HEIGHT = 260, 26
_PAD = 9
_TICKS = (1, 3, 10, 30, 100)
_APART = 22  # units between labels
_WIDEN = 4  # gives the first margin to either side two fifths of the axis or so

Shown = Mapping[str, Any]  # a study as the template shows it


def unit(verdict: Verdict) -> float:
    """Return the unit in which an effect is drawn: its margin, or without a margin the farther end of its interval."""
    if verdict.margin and math.isfinite(verdict.margin):
        return abs(verdict.margin)
    effect = verdict.effect
    return max((abs(v) for v in (effect.point, effect.low, effect.high) if math.isfinite(v)), default=1.0) or 1.0


def reach(verdicts: Iterable[Verdict]) -> float:
    """Return how many margins a strip extends to either side: all points, no fewer than 3 and no more than 100."""
    points = [abs(v.effect.point) / unit(v) for v in verdicts if math.isfinite(v.effect.point)]
    return min(100.0, max(3.0, 1.2 * max(points, default=1.0)))


def strip(verdict: Verdict, far: float) -> dict[str, Any]:
    """Return where the parts of a verdict's strip lie, in the units of its drawing.

    Effects on different scales (ratios, differences, values) share one axis in margins: 0 is no effect, 1 the margin.
    It is compressed far from 0, so that effects of a fifth of a margin and of fifty margins both show.

    Args:
        verdict: The verdict.
        far: From `reach`.
    """
    length, effect = unit(verdict), verdict.effect
    measured = math.isfinite(effect.point)
    low, high = (
        -math.inf if math.isnan(effect.low) else effect.low,
        math.inf if math.isnan(effect.high) else effect.high,
    )
    kept = [min(max(v / length, -far), far) for v in (effect.point if measured else 0.0, low, high)]
    point, start, end = (position(v, far) for v in kept)
    margin = math.copysign(1.0, verdict.margin) if verdict.margin else 0.0
    return {
        "seen": measured,
        "point": point,
        "start": start,
        "end": end,
        "margin": position(margin, far),
        "cut_low": low / length < -far,
        "cut_high": high / length > far,
    }


def ticks(far: float) -> list[tuple[float, str]]:
    """Return the labels (place, words) of the axis of all strips; a label that would touch the last is left out."""
    kept = [0]
    for size in _TICKS:
        if size <= far and position(size, far) - position(kept[-1], far) > _APART:
            kept.append(size)
    return [(position(at, far), str(at).replace("-", "−")) for at in sorted({*kept, *(-size for size in kept)})]


def position(margins: float, far: float) -> float:
    """Return where so many margins lie across a strip: linear near 0, logarithmic beyond about 1."""
    return round(WIDTH / 2 + (WIDTH / 2 - _PAD) * math.asinh(_WIDEN * margins) / math.asinh(_WIDEN * far), 1)


def filters(studies: Sequence[Shown]) -> list[tuple[str, str, list[str]]]:
    """Return filter definitions (label, row key, values) for the overview; none for a short list."""
    judged = [study for study in studies if study["verdict"]]
    found = [
        ("Verdict", "outcome", {study["verdict"]["outcome"] for study in judged}),
        ("Topic", "topic", {study["topic"] for study in judged if study["topic"]}),
        ("Source text", "texts", {text for study in judged for text in study["texts"]}),
    ]
    return [(label, key, sorted(values)) for label, key, values in found if len(judged) > FEW and len(values) > 1]


def sentences_by_text(
    sentences: Iterable[Sentence], studies: Mapping[str, Shown]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the sentences by text, each with the studies that judge it."""
    texts: dict[str, list[dict[str, Any]]] = {}
    for sentence in sentences:
        row = {"place": sentence.place, "says": sentence.says, "note": sentence.note}
        texts.setdefault(sentence.text, []).append(row | {"studies": _found(sentence.studies, studies)})
    return list(texts.items())


def errata_with_figures(errata: Iterable[Erratum], studies: Mapping[str, Shown]) -> list[dict[str, Any]]:
    """Return the errata, each with its studies and with the figure that shows it, if it is on the page."""
    rows = []
    for erratum in errata:
        figures = [figure for slug in erratum.studies if slug in studies for figure in studies[slug]["figures"]]
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
