"""What one network answers to a question, and what happens to the word where one thing of the network changes."""

from dataclasses import dataclass

from normscope.atlas.answers import KeptAnswer
from normscope.atlas.layout import KeptComparison, Network
from normscope.records import Outcome

#: Arms without norms, the plain one first: in both the same thing is taken away.
WITHOUT = ("none", "rescaled")


@dataclass(frozen=True)
class Cell:
    """What one network answers to a question.

    Attributes:
        comparison: The comparison of the network.
        answer: Its answer.
    """

    comparison: KeptComparison
    answer: KeptAnswer

    @property
    def network(self) -> Network:
        """The network."""
        return self.comparison.network

    @property
    def title(self) -> str:
        """The network; and the arm that it is compared with, where that is another than the plain one."""
        kept = self.comparison
        beside = "" if kept.pair[-1] == WITHOUT[0] else f", beside itself {kept.arms[kept.pair[-1]]}"
        return f"{self.network.title}{beside}"

    @property
    def outcome(self) -> Outcome:
        """The word."""
        return self.answer.verdict.outcome

    @property
    def said(self) -> str:
        """The word with the effect where it is decided, in Markdown."""
        return f"*{self.outcome.value}*{self.amount}"

    @property
    def amount(self) -> str:
        """The effect in brackets where the word is decided; empty where it is not."""
        amount = self.answer.verdict.amount
        return f" ({amount.partition(' (')[0]})" if amount and self.outcome.decided else ""

    @property
    def why(self) -> str:
        """Why there is no word, in a clause; empty where there is."""
        if self.outcome is not Outcome.NOT_MEASURABLE:
            return ""
        _, _, said = self.answer.sentence.partition(": ")
        return said.rstrip(".")


@dataclass(frozen=True)
class Separation:
    """What happens to a word where one thing of a network changes.

    Attributes:
        base: The network's answer.
        variant: The answer of the network in which that thing differs.
    """

    base: Cell
    variant: Cell

    @property
    def told(self) -> bool:
        """Whether both words are decided, so that they can be held against each other."""
        return self.base.outcome.decided and self.variant.outcome.decided

    @property
    def turns(self) -> bool:
        """Whether both words are decided and differ."""
        return self.told and self.base.outcome is not self.variant.outcome

    @property
    def changed(self) -> str:
        """What differs, and the variant's word, in a clause."""
        return f"{self.variant.said} with {self.variant.network.differs_in} alone changed"

    @property
    def sentence(self) -> str:
        """How the word turns, in a sentence."""
        thing, name = self.variant.network.differs_in, self.base.network.title
        return (
            f"With {thing} alone changed, the word for the {name} turns from {self.base.said} to {self.variant.said}."
        )
