"""Planted answers of a comparison: questions that ask nothing, with the verdicts of the report's planted page."""

import polars as pl

from kit import compared_pages
from normscope.comparing.page import Answer, ComparisonPage, Shown
from normscope.comparing.question import AbstractQuestion
from normscope.records.answers import headline
from normscope.surgery import ArmReport, Change, Skip

REPORTS = {
    "own": ArmReport("own"),
    "none": ArmReport(
        "none",
        (Change("1", "BatchNorm1d -> nothing"), Change("2", "BatchNorm1d -> nothing")),
        left=(Skip("4", "why"),),
        relation="different",
        difference=0.9,
        notes=("6 parameters dropped",),
    ),
}


def question(code, number, tile=""):
    """Return a question that is asked of nothing."""
    fields = {"CODE": code, "NUMBER": number, "ASKS": "?", "CLAIM": "", "TILE": tile, "MARGIN": 0.1}
    doc = "Is it?\n\n## Question\nQ.\n\n## Method\nM.\n\n## Threats\nT.\n"
    return type("Planted", (AbstractQuestion,), {"__doc__": doc, **fields})()


def shown(described=False):
    found = []
    for number, (code, verdict) in enumerate(compared_pages.verdicts().items(), start=1):
        verdict = compared_pages.too_few_seeds(verdict) if described else verdict
        asker = question(code, number, compared_pages.TILES.get(code, ""))
        sentence = f"Described, not judged (1 seed): {verdict.finding}." if described else headline(verdict)
        answer = Answer(asker, compared_pages.ASKS[code], verdict, sentence, described)
        figures = compared_pages.figures() if code in ("speed", "smoothness") else ()
        found.append(Shown(answer, figures, (), compared_pages.NUMBERS))
    return tuple(found)


def page(described=False, **changed):
    told = {
        "title": "Your network", "lede": "3 arms.", "shown": shown(described), "arms": compared_pages.ARMS,
        "pair": ("own", "none"), "reports": REPORTS, "notes": ("a note",), "said_in_runs": (), "seconds": 3.0,
        "provenance": {"versions": {"normscope": "0.1.0"}},
    }  # fmt: skip
    return ComparisonPage(**(told | changed))


def answers():
    return pl.DataFrame({"question": ["speed"], "word": ["holds"], "effect": [0.172]})


def records():
    return pl.DataFrame({"arm": ["own", "none"], "seed": [0, 0], "value": [1.5, float("inf")]})
