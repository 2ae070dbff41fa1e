"""The page of the atlas: a table of questions by networks, and a section a question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normscope import plots
from normscope.records import Verdict
from normscope.records.addresses import save
from normscope.report._page import environment, flat, levels, resources
from normscope.report._sections import duration
from normscope.report._study import figure
from normscope.report._words import amount_of, colour_class, point_and_interval

Shown = dict[str, Any]  # as the template shows it


@dataclass(frozen=True, slots=True)
class NetworkColumn:
    """A network of the page.

    Attributes:
        name: What it is called.
        data: What it is trained on.
        norms: Its norms, with how many there are.
        facts: How it was compared, as (what, value).
        own: Whether it is the reader's own, which stands beside the atlas.
    """

    name: str
    data: str
    norms: str
    facts: Sequence[tuple[str, str]]
    own: bool = False


@dataclass(frozen=True, slots=True)
class NetworkCell:
    """What a network answers to a question.

    Attributes:
        label: The network, in words.
        verdict: The word and its numbers.
        sentence: The answer in a sentence or two.
        why: Why there is no word, in a clause; empty where there is.
    """

    label: str
    verdict: Verdict
    sentence: str
    why: str


@dataclass(frozen=True, slots=True)
class NetworkRow:
    """A question over the networks.

    Attributes:
        code: Of the question.
        number: Its number.
        asks: The question.
        source: The quantity whose effects are shown, and the studies that have the same claim, in Markdown.
        sentences: The claim over the networks, and what separates them.
        tested: What else was tested of what may separate them.
        cells: An answer for each column; None where the network was not asked.
        page: Text under each heading of the question's page.
    """

    code: str
    number: int
    asks: str
    source: str
    sentences: Sequence[str]
    tested: Sequence[str]
    cells: Sequence[NetworkCell | None]
    page: Mapping[str, str] = field(default_factory=dict)


def write_atlas(
    path: str | Path,
    *,
    title: str,
    lede: str,
    columns: Sequence[NetworkColumn],
    rows: Sequence[NetworkRow],
    provenance: Mapping[str, Any],
    seconds: float,
) -> Path:
    """Write the page: one HTML file with all it needs, which opens without a network.

    Args:
        path: Target; folders above it are made.
        title: Its title.
        lede: What was run, in a sentence or two.
        columns: The networks.
        rows: The questions.
        provenance: What made the numbers.
        seconds: What all runs took, one after the other.

    Returns:
        The path written. The file appears whole or not at all.

    Raises:
        StoreError: The path cannot be written.
    """
    charts: dict[str, Any] = {}
    page = (
        environment()
        .get_template("atlas.html")
        .render(
            title=title,
            lede=lede,
            columns=columns,
            rows=[_row(row, charts) for row in rows],
            level=levels([cell.verdict for row in rows for cell in row.cells if cell is not None]),
            headline=[("all runs, one after the other", duration(seconds))],
            provenance=list(flat(provenance)),
            times=(),
            total=0.0,
            **resources(charts),
        )
    )
    return save(path, page)


def _row(row: NetworkRow, charts: dict[str, Any]) -> Shown:
    cells = [cell for cell in row.cells if cell is not None]
    drawn = plots.forest(
        [cell.verdict for cell in cells],
        title="The effect on each network",
        slug=f"atlas-{row.code}",
        labels=[cell.label for cell in cells],
        caption="A row a network; there is no average over networks.",
    )
    anchor = f"question-{row.code}"
    return {
        "anchor": anchor,
        "code": row.code,
        "number": row.number,
        "asks": row.asks,
        "source": row.source,
        "sentences": row.sentences,
        "cells": [None if cell is None else _cell(cell) for cell in row.cells],
        "tested": row.tested,
        "picture": figure(drawn, f"{anchor}-1", charts),
        "page": {head: text for head, text in row.page.items() if text.strip()},
    }


def _cell(cell: NetworkCell) -> Shown:
    verdict = cell.verdict
    point, interval = point_and_interval(amount_of(verdict))
    return {
        "label": cell.label,
        "word": verdict.outcome.value,
        "sign": plots.outcome_icon(verdict.outcome),
        "class": colour_class(verdict.outcome.value),
        "point": point,
        "interval": interval,
        "sentence": cell.sentence,
        "why": cell.why,
        "seeds": verdict.effect.n,
        "premises": [("met" if premise.met else "not met", premise.words) for premise in verdict.premises],
    }
