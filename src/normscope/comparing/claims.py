"""Claims of studies, asked of a network of the user's own by the questions of a comparison."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from normscope import studies
from normscope._errors import UsageError
from normscope.comparing.comparison import Comparison
from normscope.comparing.find import chosen_questions
from normscope.comparing.layers import classes_of
from normscope.comparing.page import Answer
from normscope.studies import AbstractStudy, CaseQuestion


@dataclass(frozen=True)
class AskedClaim:
    """A study's claim, and the question of a comparison that asks the claim of any network.

    Attributes:
        study: The study.
        asked: The question.
    """

    study: AbstractStudy
    asked: CaseQuestion

    def answer(self, comparison: Comparison) -> Answer:
        """Return the answer of a comparison that has the question and its arms."""
        return next(each for each in comparison.answers_in_order if self.asked.question == each.question.CODE)

    def sentences(self, comparison: Comparison) -> Iterator[str]:
        """Yield what a comparison says of the claim: the question, the answer, and what it means for the claim."""
        found = self.answer(comparison)
        differs = f" The question differs from the study: {self.asked.differs}." if self.asked.differs else ""
        yield f"Asked by question {found.question.NUMBER} of a comparison: {found.asks}{differs}"
        yield found.sentence
        if means := self.means(comparison):
            yield means

    def means(self, comparison: Comparison) -> str:
        """Say what the answer means for the claim; empty where fewer seeds are described, which say nothing."""
        found = self.answer(comparison)
        if norms := self._other_norms(comparison):
            return f"The claim is about batch norm, and the norms of this network are {norms}: it is not decided here."
        return self.asked.says(found.verdict.outcome) if found.word else ""

    def _other_norms(self, comparison: Comparison) -> str:
        """Return the classes of the network's norms where none is a batch norm; empty if the claim names its norms."""
        if self.asked.arms[0] != "own":
            return ""
        names = sorted({name for name in classes_of(comparison.evidence, "own") if "norm" in name.lower()})
        return "" if any("batchnorm" in name.lower() for name in names) else ", ".join(names)


@dataclass(frozen=True)
class ClaimedComparison:
    """A comparison that asks claims of one network.

    Attributes:
        arms: The arms; the claims are about the first, beside the second.
        claims: The claims.
    """

    arms: tuple[str, str]
    claims: tuple[AskedClaim, ...]

    @property
    def beside_itself(self) -> "ClaimedComparison | None":
        """The comparison for a network whose norms are those of the second arm: beside the network as it is."""
        return None if "own" in self.arms else replace(self, arms=(self.arms[0], "own"))

    @property
    def name(self) -> str:
        """What its folder is called."""
        return "-".join(self.arms)

    @property
    def questions(self) -> list[str]:
        """Codes of the questions, in their order."""
        return [each.CODE for each in chosen_questions([claim.asked.question for claim in self.claims])]

    @property
    def rates(self) -> list[float]:
        """Factors of the learning rate."""
        return sorted({rate for claim in self.claims for rate in claim.asked.rates})


def asked_claims(slugs: Sequence[str] | None = None) -> tuple[ClaimedComparison, ...]:
    """Return the comparisons that ask the claims of studies of one network: a comparison for each pair of arms.

    Args:
        slugs: The studies, or files of a user's own; None for all whose claims can be asked.

    Raises:
        UsageError: A claim cannot be asked of a network of the user's own; the message says why.
    """
    units = studies.all() if slugs is None else [studies.get(slug) for slug in dict.fromkeys(slugs)]
    found: dict[tuple[str, str], list[AskedClaim]] = {}
    for unit in units:
        asked = unit.ON_A_CASE
        if isinstance(asked, CaseQuestion):
            found.setdefault(asked.arms, []).append(AskedClaim(unit, asked))
        elif slugs is not None:
            raise UsageError(
                f"{unit.CODE} cannot be asked of a network of your own: {asked}; `normscope study list --case` shows "
                "the studies that can"
            )
    return tuple(ClaimedComparison(arms, tuple(claims)) for arms, claims in found.items())
