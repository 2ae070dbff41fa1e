"""A study as a page shows it, and how times and cells are written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from normscope import plots
from normscope.plots import Figure, Table
from normscope.records import Verdict


@dataclass(frozen=True, slots=True)
class Section:
    """One study on the page.

    Attributes:
        slug: Name of the study; the section's address on the page.
        title: Its title.
        claim: The claim in a sentence or two.
        page: Text under each heading of the study's docstring.
        verdicts: The verdicts, the primary one first.
        figures: What answers the claim, in order.
        tables: Numbers, in order.
        command: The command that runs it again.
        notes: Sentences that a reader must not miss; shown before the figures.
        topic: What it is about, for the filter of a page of many studies.
        kind: ``"study"``; ``"probe"`` where nothing is claimed or judged; ``"check"`` for findings.
        texts: Titles of the texts whose claims it judges, for the filter.
        address: Of its page on the documentation site; empty where there is none.
        described: Whether there are too few seeds for words: numbers are then shown, and none is judged.
    """

    slug: str
    title: str
    claim: str
    page: Mapping[str, str]
    verdicts: tuple[Verdict, ...]
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    command: str = ""
    notes: tuple[str, ...] = ()
    topic: str = ""
    kind: str = "study"
    texts: tuple[str, ...] = ()
    address: str = ""
    described: bool = False


def duration(seconds: float) -> str:
    """Write a time for reading: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def cell(value: Any) -> str:
    """Write the value of a table's cell."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return plots.number(value) if isinstance(value, float) else str(value)
