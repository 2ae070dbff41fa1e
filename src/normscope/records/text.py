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


@dataclass(frozen=True, slots=True)
class Statement:
    """What a hand-written answer takes for granted of one contrast.

    Attributes:
        study: Slug of the study.
        contrast: Name of the contrast; empty for the headline.
        word: The word that the contrast must have for the answer to be true.
    """

    study: str
    contrast: str
    word: str


@dataclass(frozen=True, slots=True)
class Question:
    """A question that people ask, with an answer in a few hand-written sentences.

    Attributes:
        asks: The question, in the askers' words, shortened.
        text: Kind and title of the text that asks it; empty for a question of today that none of the texts asks.
        answer: Sentences in which ``{study / contrast}`` stands for the effect of a contrast in natural units, and
            ``{study}`` for that of a headline.
        rests_on: What the sentences take for granted.
        picture: Slug of the study whose picture stands beside it.
        command: The command that asks it of the reader's own network or data.
        atlas: Code of the question of a comparison that is the same question; empty if none is.
    """

    asks: str
    text: str
    answer: str
    rests_on: tuple[Statement, ...]
    picture: str
    command: str
    atlas: str = ""
