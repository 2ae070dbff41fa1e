"""A study's claim, asked of a network of the user's own: by which question of a comparison, or why by none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from normscope.records import Outcome

#: Why an identity is not asked.
IDENTITY = "it is an identity, which holds for every network or for none"
#: Why a claim on where norms stand, or on what else the network is built from, is not asked.
BUILT_OTHERWISE = "its arms are built differently, which surgery on a finished network cannot do"


@dataclass(frozen=True, slots=True)
class CaseQuestion:
    """The question of a comparison that asks a study's claim of any network.

    Attributes:
        question: Code of the question: ``"shift"``.
        arms: The arms of the comparison: the claim is about the first, beside the second.
        differs: How the question differs from the study; empty if in the network alone.
        rates: Factors of the learning rate that are tried.
        in_favour: The words of the answer that speak for the claim.
    """

    question: str
    arms: tuple[str, str] = ("own", "none")
    differs: str = ""
    rates: tuple[float, ...] = (1.0,)
    in_favour: tuple[Outcome, ...] = (Outcome.HOLDS,)

    def says(self, outcome: Outcome) -> str:
        """Return what an answer means for the claim, in a sentence."""
        if outcome in self.in_favour:
            return "This speaks for the claim."
        return "This speaks against the claim." if outcome.decided else "This does not decide on the claim."

    def as_json(self) -> Mapping[str, Any]:
        """Return the question as values for JSON."""
        return {"question": self.question, "arms": [*self.arms], "differs": self.differs}
