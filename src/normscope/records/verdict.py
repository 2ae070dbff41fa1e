"""A claim, judged."""

from dataclasses import dataclass
from enum import StrEnum

from normscope.records.estimate import Estimate


class Outcome(StrEnum):
    """What the evidence says of a claim."""

    SUPPORTED = "supported"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one endpoint of a study, with the estimate that decided it.

    Attributes:
        study: Slug of the study.
        claim: What was claimed, in a sentence.
        outcome: What the evidence says.
        endpoint: What was measured, in words.
        effect: The estimate that decided, positive in the direction of the claim.
        margin: Smallest effect of interest, on the effect's scale; fixed before the run.
        reason: Why this outcome, in a sentence a reader can act on.
        sources: Where the claim comes from.
        p_value: Probability of data at least this extreme if the effect lay at the margin that the outcome excludes;
            None where no test was made.
        adjusted_p: ``p_value`` after correction over the primary endpoints judged together; None before that.
        primary: Whether this is the endpoint that decides the claim; the others qualify it.
        parts: The study's other endpoints, matchings and arms.
    """

    study: str
    claim: str
    outcome: Outcome
    endpoint: str
    effect: Estimate
    margin: float
    reason: str
    sources: tuple[str, ...] = ()
    p_value: float | None = None
    adjusted_p: float | None = None
    primary: bool = True
    parts: tuple["Verdict", ...] = ()
