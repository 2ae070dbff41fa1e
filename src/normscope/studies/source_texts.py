"""The texts whose sentences the studies judge, and the questions that people ask: data, read from data/*.toml."""

import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from normscope.records import Answer, Erratum, Question, Sentence, Statement


class Texts(NamedTuple):
    """What is said about batch normalization where this project began.

    Attributes:
        titles: Kind and title of each text, by how the ``SOURCES`` of studies name it.
        sentences: What they claim, text by text.
        errata: What they and the papers they cite state wrongly or leave open.
        questions: What people ask, each with an answer in a few sentences.
    """

    titles: dict[str, str]
    sentences: tuple[Sentence, ...]
    errata: tuple[Erratum, ...]
    questions: tuple[Question, ...]

    def judged_by(self, slug: str) -> tuple[str, ...]:
        """Return the titles of the texts of which a study judges a sentence."""
        found = {sentence.text for sentence in self.sentences if slug in sentence.studies}
        return tuple(title for title in self.titles.values() if title in found)


@cache
def texts() -> Texts:
    """Return the texts."""
    data, asked = (
        tomllib.loads((Path(__file__).parent / "data" / name).read_text(encoding="utf-8"))
        for name in ("texts.toml", "questions.toml")
    )
    titles = {key: text["title"] for key, text in data["texts"].items()}
    sentences = tuple(
        Sentence(
            titles[row["text"]],
            row["place"],
            row["says"],
            tuple(Answer(**answer) for answer in row["answers"]),
            row.get("note", ""),
        )
        for row in data["sentences"]
    )
    errata = tuple(
        Erratum(
            titles.get(one["where"], one["where"]),
            one["stated"],
            one["holds"],
            tuple(one["studies"]),
            one.get("figure", ""),
        )
        for one in data["errata"]
    )
    questions = tuple(
        Question(
            row["asks"],
            titles[row["text"]] if "text" in row else "",
            row["answer"].strip(),
            tuple(Statement(*statement) for statement in row["rests_on"]),
            row["picture"],
            row["command"].strip(),
            row.get("atlas", ""),
        )
        for row in asked["questions"]
    )
    return Texts({text["cited"]: text["title"] for text in data["texts"].values()}, sentences, errata, questions)
