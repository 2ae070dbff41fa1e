"""Claims of texts about batch normalization, and errors in them: read by studies, shown by the report."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """The contrast that tests a sentence.

    Attributes:
        study: Slug of the study.
        contrast: Name of the contrast; empty for the headline.
        negated: Whether the sentence denies what the contrast claims, so that its word must be turned round.
        kind: ``"measurement"``, or ``"algebra"`` for an identity.
    """

    study: str
    contrast: str = ""
    negated: bool = False
    kind: str = "measurement"


@dataclass(frozen=True, slots=True)
class Sentence:
    """A claim that a text makes, and the contrasts that put it to the test.

    Attributes:
        text: Kind and title of the text.
        place: Where in it: question, answer, comment, section.
        says: The sentence in short.
        answers: The contrasts that test it.
        note: What is to be said in words: why nothing tests it, or what the words of the contrasts leave out.
    """

    text: str
    place: str
    says: str
    answers: tuple[Answer, ...]
    note: str = ""

    @property
    def studies(self) -> tuple[str, ...]:
        """Slugs of the studies that test it."""
        return tuple(dict.fromkeys(answer.study for answer in self.answers))


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
