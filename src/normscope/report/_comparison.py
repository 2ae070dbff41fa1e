"""The page of a comparison: a strip of tiles, the answers in sentences, and a section a question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from normscope.records.addresses import save
from normscope.records.answers import capital
from normscope.report._page import environment, flat, headline, levels, resources
from normscope.report._sections import Section, duration
from normscope.report._study import study
from normscope.report._words import p_words, point_and_interval

_FEW_LINES = 4  # of what was done to an arm, that need no fold
_TILES = 4  # that the strip has room for

Shown = dict[str, Any]  # as the template shows it


@dataclass(frozen=True, slots=True)
class AskedQuestion:
    """A question of the comparison with its answer.

    Attributes:
        section: Its section: the title is the question, the verdict and the pictures are its answer.
        sentence: The answer in a sentence or two.
        number: Its number among all questions.
        tile: What its tile in the strip is called; empty if it has none.
        numbers: The number of each arm in the contrast that decides, in words, by the name of the arm; empty words
            where an arm has none.
        beside: What other networks answer, in a sentence; empty where that is not known.
    """

    section: Section
    sentence: str
    number: int
    tile: str = ""
    numbers: Mapping[str, str] = field(default_factory=dict)
    beside: str = ""


@dataclass(frozen=True, slots=True)
class MadeArm:
    """An arm of the comparison.

    Attributes:
        name: Its name in the records.
        words: What it is called in a sentence.
        summary: What was done to make it, in a sentence or two.
        lines: The same in detail, a line each.
    """

    name: str
    words: str
    summary: str = ""
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ComparedPage:
    """What the page shows, in order.

    Attributes:
        title: Its title.
        lede: What was run, in a sentence.
        asked: The questions with their answers.
        arms: The arms, the one that is asked about first.
        pair: Names of the two arms that decide the questions.
        notes: Sentences that a reader must not miss.
        said: What probes and recorder had to say in the runs.
        command: The command that runs it again; empty if there is none.
        beside: Studies that stand beside the comparison.
        provenance: What made the numbers.
        seconds: What all runs took, one after the other; 0 if that is not known.
    """

    title: str
    lede: str
    asked: Sequence[AskedQuestion]
    arms: Sequence[MadeArm]
    pair: tuple[str, str]
    notes: Sequence[str] = ()
    said: Sequence[str] = ()
    command: str = ""
    beside: Sequence[Section] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def write_comparison(path: str | Path, page: ComparedPage) -> Path:
    """Write the page: one HTML file with all it needs, which opens without a network.

    Args:
        path: Target; folders above it are made.
        page: What it shows.

    Returns:
        The path written. The file appears whole or not at all.

    Raises:
        StoreError: The path cannot be written.
    """
    return save(path, comparison_html(page))


def comparison_html(page: ComparedPage) -> str:
    """Return the page as text."""
    charts: dict[str, Any] = {}
    questions = [_question(asked, index, charts) for index, asked in enumerate(page.asked, start=1)]
    beside = [study(section, f"study-{index}", charts) for index, section in enumerate(page.beside, start=1)]
    words = {arm.name: arm.words for arm in page.arms}
    together = sum(shown["verdict"] is not None and shown["verdict"].adjusted_p is not None for shown in questions)
    tiles = [_tile(shown, [(words.get(arm, arm), shown["numbers"].get(arm, "")) for arm in page.pair], together)
             for shown in questions if shown["tile"]]  # fmt: skip
    return (
        environment()
        .get_template("comparison.html")
        .render(
            page=page,
            title=page.title,
            questions=questions,
            tiles=tiles[:_TILES],
            notes=[_sentence(note) for note in page.notes],
            arms=page.arms,
            beside=beside,
            few_lines=_FEW_LINES,
            measured=[shown for shown in questions if any(shown["numbers"].values())],
            judged=[shown for shown in questions if shown["answer"] and not shown["described"]],
            level=levels([shown["verdict"] for shown in questions if shown["verdict"]]),
            headline=_made(page),
            provenance=list(flat(page.provenance)),
            times=(),
            total=0.0,
            **resources(charts),
        )
    )


def _question(asked: AskedQuestion, index: int, charts: dict[str, Any]) -> Shown:
    """Return a question as the template shows it: its section as that of a study, answered by its own sentence."""
    section = asked.section
    shown = study(section, f"question-{index}", charts)
    if shown["answer"]:
        shown["answer"] |= {"whole": asked.sentence}
        shown["facts"] = [("claim", shown["claim"]), *shown["facts"]]
    return shown | {
        "asks": section.title,
        "title": shown["claim"],  # the question is the heading already
        "number": asked.number,
        "sentence": asked.sentence,
        "beside": asked.beside,
        "tile": asked.tile,
        "numbers": asked.numbers,
        "described": section.described,
    }


def _tile(shown: Shown, numbers: list[tuple[str, str]], together: int) -> Shown:
    """Return a tile of the strip: its name, the word, the effect, and the numbers of the two arms that decide."""
    answer = shown["answer"] or {}
    point, interval = point_and_interval(answer.get("amount", ""))
    return {
        "anchor": shown["anchor"],
        "title": shown["tile"],
        "asks": shown["asks"],
        "answer": shown["answer"],
        "corrected": _corrected(shown, together),
        "point": point,
        "interval": interval,
        "numbers": numbers if any(number for _, number in numbers) else [],
        "pair": " against ".join(words for words, _ in numbers),
    }


def _corrected(shown: Shown, together: int) -> str:
    """Say that the word of a tile is corrected for the answers that are read together; empty where it is not."""
    verdict = shown["verdict"]
    if verdict is None or shown["described"] or verdict.adjusted_p is None or together < 2:
        return ""
    _, p = p_words(verdict)
    return f"After Holm's correction for {together} answers read together: {p}. The interval is of this answer alone."


def _made(page: ComparedPage) -> list[tuple[str, str]]:
    """Return the few facts on how the comparison was made."""
    took = [("all runs, one after the other", duration(page.seconds))] if page.seconds else []
    began = str(page.provenance.get("utc") or "")[:16].replace("T", " ")
    return [*took, *headline(page.provenance, {}), *([("began", f"{began} UTC")] if began else [])]


def _sentence(note: str) -> str:
    """Write a note as a sentence."""
    said = capital(note.strip())
    return said if said.endswith((".", "!", "?")) else f"{said}."
