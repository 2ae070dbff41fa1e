"""Claims of texts about batch normalization, and errors in them: read by studies, shown by the report."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sentence:
    """A claim that a text makes, and the studies that put it to the test.

    Attributes:
        text: Kind and title of the text.
        place: Where in it: question, answer, comment, section.
        says: The sentence in short.
        studies: Slugs of the studies that judge it.
        note: Why none does, where there is none.
    """

    text: str
    place: str
    says: str
    studies: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Erratum:
    """A statement of a text or paper that is wrong or leaves something open.

    Attributes:
        where: The text or paper.
        stated: What it states.
        holds: What holds instead.
        studies: Slugs of the studies whose numbers show it; none where it is read off the paper itself.
        figure: Name of the figure of the first of them that shows it; its first figure if empty.
    """

    where: str
    stated: str
    holds: str
    studies: tuple[str, ...]
    figure: str = ""
