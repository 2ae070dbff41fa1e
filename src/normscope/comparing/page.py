"""The page of a comparison, and what it is made of."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normscope.comparing.plan import Plan, Wish
from normscope.comparing.question import AbstractQuestion
from normscope.plots import Figure, Table
from normscope.records import Verdict
from normscope.records.numbers import counted
from normscope.report import AskedQuestion, ComparedPage, MadeArm, Section, write_comparison
from normscope.surgery import ArmReport

DEFAULT_OUT = "runs/compare"
_BEGINS = {"equal": "equal to that of the network as it is", "rescaled": "that of the network as it is, rescaled"}
_RESCUED = (
    "Without norms, with weights scaled so that signals keep their size; added because the network did not learn "
    "without norms as it is."
)


@dataclass(frozen=True)
class Answer:
    """The answer to a question.

    Attributes:
        question: The unit that asks.
        asks: The question, with the words for the arms.
        verdict: Its word and numbers; the other contrasts are its parts.
        sentence: The answer in a sentence or two.
        described: Whether there are too few seeds for words: the numbers are described, and none is judged.
        beside: What the networks of the atlas answer, in a sentence; empty where none was compared in this way.
    """

    question: AbstractQuestion
    asks: str
    verdict: Verdict
    sentence: str
    described: bool = False
    beside: str = ""

    @property
    def word(self) -> str:
        """The word for the answer; empty where it is described."""
        return "" if self.described else self.verdict.outcome.value


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
        pair: Names of the two arms that decide the questions.
        reports: What was done to make each arm, by name.
        notes: Sentences that a reader must know.
        said_in_runs: What probes and recorder had to say in the runs.
        provenance: Versions, machine, commit and time of the run.
        seconds: What all runs took, one after the other.
        command: The command that runs it again; empty if a command cannot.
    """

    title: str
    lede: str
    shown: tuple[Shown, ...]
    arms: Mapping[str, str]
    pair: tuple[str, str]
    reports: Mapping[str, ArmReport]
    notes: tuple[str, ...]
    said_in_runs: tuple[str, ...]
    provenance: Mapping[str, Any]
    seconds: float
    command: str = ""


def write_page(path: Path, page: ComparisonPage, beside: Sequence[Section] = ()) -> Path:
    """Write the page of a comparison.

    Args:
        path: The HTML file.
        page: What it shows.
        beside: Studies that stand beside the comparison.

    Raises:
        StoreError: It cannot be written.
    """
    shown = ComparedPage(
        title=page.title,
        lede=page.lede,
        asked=[_asked(each) for each in page.shown],
        arms=[made_arm(name, words, page.reports.get(name)) for name, words in page.arms.items()],
        pair=page.pair,
        notes=page.notes,
        said=page.said_in_runs,
        command=page.command,
        beside=beside,
        provenance=page.provenance,
        seconds=page.seconds,
    )
    return write_comparison(path, shown)


def _asked(shown: Shown) -> AskedQuestion:
    answer = shown.answer
    section = Section(
        slug=answer.question.CODE,
        title=answer.asks,
        claim=answer.verdict.claim,
        page=answer.question.page(),
        verdicts=(answer.verdict,),
        figures=shown.figures,
        tables=shown.tables,
        kind="question",
        described=answer.described,
    )
    return AskedQuestion(
        section, answer.sentence, answer.question.NUMBER, answer.question.TILE, shown.numbers, answer.beside
    )


def made_arm(name: str, words: str, report: ArmReport | None) -> MadeArm:
    """Say what was done to make an arm, for a reader.

    Args:
        name: Name of the arm.
        words: What it is called in a sentence.
        report: What surgery reports; None if there is no report.
    """
    if report is None:
        return MadeArm(name, words, _RESCUED if name == "rescaled" else "")
    lines = tuple(" ".join(line.split()) for line in report.lines())
    return MadeArm(name, words, _summary(report), lines)


def _summary(report: ArmReport) -> str:
    """Write the head of an arm's report as sentences, without the counts that are nought."""
    kept = [(count, what) for what, count in report.counts.items() if count]
    norms = [f"{counted(count, 'norm') if not index else count} {what}" for index, (count, what) in enumerate(kept)]
    if not kept and report.relation == "equal":
        return "The network as it is."
    begins = f"{_BEGINS.get(report.relation, report.relation)} {report.distance}".rstrip()
    return f"{', '.join(norms) or 'No norm changed'}. At the start its function is {begins}."


def command_of(config: Mapping[str, Any], seeds: int, all_questions: Sequence[str], out: str = DEFAULT_OUT) -> str:
    """Return the command that runs a comparison again.

    Args:
        config: The configuration of its run.
        seeds: How many seeds it has.
        all_questions: Codes of all questions that there are.
        out: Its folder; left out of the command where it is the one that a command takes by itself.

    Returns:
        Empty if a command cannot: a function that came from Python made or changed an arm.
    """
    asked, plan = config["asked"], config["plan"]
    arms = [arm for arm in config["arms"] if not arm.get("added")]
    sources = {arm["name"]: arm["made_by"] for arm in arms}
    if any(":" not in made_by for made_by in sources.values()):
        return ""
    if len(set(sources.values())) == 1:
        if any(arm["does"] != arm["name"] for arm in arms):
            return ""
        words = [arms[0]["made_by"]]
        names = [arm["name"] for arm in arms]
        words += [] if names == ["own", "none"] else ["--arms", ",".join(names)]
    else:
        words = [f"{name}={made_by}" for name, made_by in sources.items()]
    # What a budget chose is named, for another machine would choose otherwise.
    fixed = asked["budget"] is not None
    options: dict[str, Any] = {
        "--seeds": seeds if seeds != Plan.seeds or fixed else None,
        "--steps": plan["steps"] if fixed else asked["steps"],
        "--rates": ",".join(f"{rate:g}" for rate in asked["rates"]) if len(asked["rates"]) > 1 else None,
        "--batches": asked["batches"] if asked["batches"] != Wish.batches else None,
        "--out": out if out != DEFAULT_OUT else None,
        "--questions": ",".join(plan["questions"]) if list(plan["questions"]) != list(all_questions) else None,
    }
    words += [str(word) for option, value in options.items() if value is not None for word in (option, value)]
    return shlex.join(["normscope", "compare", *words])
