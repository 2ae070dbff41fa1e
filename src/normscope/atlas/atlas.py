"""Comparisons of many networks beside each other: a row a question, a cell a network, a sentence a row."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path

from normscope import studies
from normscope.atlas.answers import answers_of, outcomes_of
from normscope.atlas.cell import WITHOUT, Cell, Separation
from normscope.atlas.file import read
from normscope.atlas.layout import KeptComparison
from normscope.records import Outcome
from normscope.records.answers import capital
from normscope.studies import CaseQuestion


@dataclass(frozen=True)
class Row:
    """A question over all networks.

    Attributes:
        code: Of the question.
        number: Its number.
        asks: The question.
        cells: The answers of the networks, in order.
        separations: What was tested of what separates the networks.
    """

    code: str
    number: int
    asks: str
    cells: tuple[Cell, ...]
    separations: tuple[Separation, ...]

    @cached_property
    def words(self) -> dict[Outcome, list[Cell]]:
        """The cells by their word, in the order of the words."""
        found = {outcome: [cell for cell in self.cells if cell.outcome is outcome] for outcome in Outcome}
        return {outcome: cells for outcome, cells in found.items() if cells}

    @property
    def differs(self) -> bool:
        """Whether decided words differ from network to network."""
        return sum(outcome.decided for outcome in self.words) > 1

    @property
    def sentences(self) -> tuple[str, ...]:
        """The claim over the networks: on which it stands how, and what separates them. There is no average."""
        said = [self._under(outcome, cells) for outcome, cells in self.words.items()]
        if turning := [each.sentence for each in self.separations if each.turns]:
            said += turning
        elif self.differs:
            said.append("What separates these networks is not known.")
        return tuple(said)

    @property
    def sentence(self) -> str:
        """All sentences as one text."""
        return " ".join(self.sentences)

    @property
    def tested(self) -> tuple[str, ...]:
        """The variants that do not turn the word of their network, or of which that is not known; sentences by network.

        A variant is left out where neither word is decided, as it tells nothing then.
        """
        said: list[str] = []
        for base in self.cells:
            others = [each for each in self.separations if each.base is base and not each.turns]
            stay = "; ".join(each.changed for each in others if each.told)
            open_ = [each for each in others if not each.told]
            untold = "; ".join(each.changed for each in open_ if base.outcome.decided or each.variant.outcome.decided)
            title = base.network.title
            said += [f"The word for the {title} does not turn: {base.said}, and {stay}."] if stay else []
            said += [f"Whether the word for the {title} turns is not known: {base.said}; {untold}."] if untold else []
        return tuple(said)

    @property
    def measured(self) -> str:
        """The quantity whose effect stands beside the words."""
        return self.cells[0].answer.question.contrasts[0].quantity

    @cached_property
    def claims(self) -> tuple[studies.AbstractStudy, ...]:
        """The studies whose claims the question asks of a network with its norms and without."""
        asked = ((unit, unit.ON_A_CASE) for unit in studies.all())
        return tuple(
            unit
            for unit, on in asked
            if isinstance(on, CaseQuestion) and on.question == self.code and on.arms == ("own", "none")
        )

    @property
    def source(self) -> str:
        """What is measured, and which studies have the same claim, in Markdown."""
        named = ", ".join(f"`{unit.CODE}`" for unit in self.claims)
        claim = "claim that the study tests" if len(self.claims) == 1 else "claims that the studies test"
        return f"Measured: {self.measured}." + (f" It asks the {claim}: {named}." if named else "")

    @property
    def question(self) -> str:
        """The question with the quantity, in Markdown."""
        return f"*{self.asks}* {self.source}"

    @property
    def answer(self) -> str:
        """The question with a list of the sentences, in Markdown."""
        return "\n".join([f"{self.question}\n", *(f"- {said}" for said in self.sentences)])

    def _under(self, outcome: Outcome, cells: Sequence[Cell]) -> str:
        named = "; ".join(f"{cell.title}{cell.amount}" for cell in cells)
        if outcome is Outcome.NOT_MEASURABLE:
            named = "; ".join(f"{cell.title} ({cell.why})" for cell in cells)
        if len(cells) == len(self.cells):
            every = f"all {len(cells)} networks" if len(cells) > 1 else "the one network"
            return f"{capital(outcome.value)} on {every}: {named}."
        return f"{capital(outcome.value)} on {len(cells)} of {len(self.cells)}: {named}."


class Atlas:
    """Comparisons of many networks.

    Args:
        comparisons: The comparisons, in the order of the columns; variants of a network may be among them.

    Attributes:
        networks: The comparisons that are no variant.
        variants: The comparisons of networks that differ from another one in one thing.
    """

    def __init__(self, comparisons: Sequence[KeptComparison]) -> None:
        self.networks = tuple(each for each in comparisons if not each.network.differs_from)
        self.variants = tuple(each for each in comparisons if each.network.differs_from)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """The questions that any network answers, in the order of their numbers."""
        return self._rows(None)

    def row(self, code: str) -> Row | None:
        """Return one question without judging the others; None if no network answers it.

        Args:
            code: Of the question.
        """
        return next(iter(self._rows({code})), None)

    def _rows(self, codes: Collection[str] | None) -> tuple[Row, ...]:
        cells = [cell for comparison in self.networks for cell in _cells(comparison, codes)]
        others = [cell for comparison in self.variants for cell in _cells(comparison, codes)]
        asked = {cell.answer.question.code: cell.answer.question for cell in reversed(cells)}
        return tuple(
            self._row(question.code, question.number, question.asks, cells, others)
            for question in sorted(asked.values(), key=lambda each: each.number)
        )

    def _row(self, code: str, number: int, asks: str, cells: Sequence[Cell], others: Sequence[Cell]) -> Row:
        own = tuple(cell for cell in cells if cell.answer.question.code == code)
        by_title = {cell.network.title: cell for cell in own}
        pairs = tuple(
            Separation(base, cell)
            for cell in others
            if cell.answer.question.code == code
            and (base := by_title.get(cell.network.differs_from))
            and base.comparison.pair == cell.comparison.pair  # else two things differ
        )
        return Row(code, number, asks, own, pairs)

    @cached_property
    def _outcomes(self) -> tuple[tuple[KeptComparison, dict[str, Outcome]], ...]:
        """The networks with the words for each question."""
        return tuple((each, outcomes_of(each)) for each in self.networks)

    def beside(self, code: str, outcome: Outcome, pair: Sequence[str]) -> str:
        """Say how a network's answer stands to those of the atlas, in a sentence.

        Args:
            code: Of the question.
            outcome: The network's word.
            pair: Names of the two arms that decide it.

        Returns:
            Empty where the atlas has no decided answer that compares the same arms.
        """
        alike = [(each, words) for each, words in self._outcomes if _same_arms(each.pair, pair) and code in words]
        named: dict[Outcome, list[str]] = {}
        for each, words in alike:
            if words[code].decided:
                named.setdefault(words[code], []).append(each.network.title)
        decided = sum(map(len, named.values()))
        if not decided:
            return ""
        same = named.pop(outcome, []) if outcome.decided else []
        others = "; ".join(f"{word.value} on {', '.join(titles)}" for word, titles in named.items())
        if not outcome.decided:
            return f"In the atlas: {others}."
        count = f"{len(same)} of {decided} ({', '.join(same)})" if same else f"none of {decided}"
        return f"In the atlas: the same on {count}{f'; {others}' if others else ''}."


@cache
def committed() -> Atlas:
    """Return the atlas of the package, from its folder ``atlas/data``."""
    folder = files("normscope.atlas").joinpath("data")
    paths = sorted(str(each) for each in folder.iterdir() if each.name.endswith(".json")) if folder.is_dir() else []
    return Atlas([read(Path(path)) for path in paths])


def _cells(comparison: KeptComparison, codes: Collection[str] | None) -> Iterator[Cell]:
    for answer in answers_of(comparison, codes):
        yield Cell(comparison, answer)


def _same_arms(first: Sequence[str], second: Sequence[str]) -> bool:
    """Say whether two pairs compare the same thing; without norms is without norms, whatever the first weights."""
    one, other = (["none" if arm in WITHOUT else arm for arm in pair] for pair in (first, second))
    return one == other
