"""The texts whose sentences the studies judge: read from data/texts.toml, which is data about texts and not code."""

import tomllib
from functools import cache
from pathlib import Path
from typing import NamedTuple

from normscope.records import Answer, Erratum, Sentence


class Texts(NamedTuple):
    """What is said about batch normalization where this project began.

    Attributes:
        titles: Kind and title of each text, by how the ``SOURCES`` of studies name it.
        sentences: What they claim, text by text.
        errata: What they and the papers they cite state wrongly or leave open.
    """

    titles: dict[str, str]
    sentences: tuple[Sentence, ...]
    errata: tuple[Erratum, ...]

    def judged_by(self, slug: str) -> tuple[str, ...]:
        """Return the titles of the texts of which a study judges a sentence."""
        found = {sentence.text for sentence in self.sentences if slug in sentence.studies}
        return tuple(title for title in self.titles.values() if title in found)


@cache
def texts() -> Texts:
    """Return the texts."""
    data = tomllib.loads((Path(__file__).parent / "data" / "texts.toml").read_text(encoding="utf-8"))
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
    return Texts({text["cited"]: text["title"] for text in data["texts"].values()}, sentences, errata)
