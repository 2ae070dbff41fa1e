"""The page of a comparison."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normscope.comparing.question import AbstractQuestion
from normscope.plots import Figure, Table
from normscope.records import Verdict
from normscope.report import Section, write


@dataclass(frozen=True)
class Answer:
    """The answer to a question.

    Attributes:
        question: The unit that asks.
        asks: The question, with the words for the arms.
        verdict: Its word and numbers; the other contrasts are its parts.
        sentence: The answer in a sentence or two.
    """

    question: AbstractQuestion
    asks: str
    verdict: Verdict
    sentence: str


@dataclass(frozen=True)
class Shown:
    """An answer with its pictures.

    Attributes:
        answer: The answer.
        figures: What answers the question, in order.
        tables: The numbers behind it.
        numbers: The number of each arm in the contrast that decides, in words, by the name of the arm.
    """

    answer: Answer
    figures: tuple[Figure, ...]
    tables: tuple[Table, ...]
    numbers: Mapping[str, str]


@dataclass(frozen=True)
class ComparisonPage:
    """What the page of a comparison shows.

    Attributes:
        title: The arms in words.
        lede: What was run, in a sentence.
        shown: The answers, question by question.
        arms: Words for the arms, by name.
        reports: What was done to make each arm, in lines, by name.
        notes: Sentences that a reader must know.
        said_in_runs: What probes and recorder had to say in the runs.
        provenance: Versions, machine, commit and time of the run.
        seconds: What all runs took, one after the other.
    """

    title: str
    lede: str
    shown: tuple[Shown, ...]
    arms: Mapping[str, str]
    reports: Mapping[str, str]
    notes: tuple[str, ...]
    said_in_runs: tuple[str, ...]
    provenance: Mapping[str, Any]
    seconds: float


def write_page(path: Path, page: ComparisonPage) -> Path:
    """Write the page of a comparison.

    Raises:
        StoreError: It cannot be written.
    """
    return write(
        path,
        title=page.title,
        lede=page.lede,
        sections=[_section(shown) for shown in page.shown],
        provenance=page.provenance,
    )


def _section(shown: Shown) -> Section:
    answer = shown.answer
    return Section(
        slug=answer.question.CODE,
        title=answer.asks,
        claim=answer.verdict.claim,
        page=answer.question.page(),
        verdicts=(answer.verdict,),
        figures=shown.figures,
        tables=shown.tables,
    )
