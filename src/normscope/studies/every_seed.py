"""Rules that look at every seed by itself: no test is made, and nothing is concluded of seeds that were not run."""

import numpy as np

from normscope.records import Estimate, Outcome
from normscope.stats import Decision
from normscope.studies.evidence import Floats


def exact(errors: Floats, bound: float) -> Decision:
    """Judge an identity: *exact* or *false*.

    Args:
        errors: The error in each seed (n,).
        bound: All errors of an identity lie below it, in size.
    """
    if not len(errors) or not np.isfinite(errors).all():
        return Decision(Outcome.NOT_MEASURABLE, None, "the error is not a number in every seed")
    below = np.abs(errors) < bound
    if below.all():
        return Decision(Outcome.EXACT, None)
    if not below.any():
        return Decision(Outcome.FALSE, None)
    why = f"the error lies below {bound:g} in {int(below.sum())} of {len(below)} seeds"
    return Decision(Outcome.UNCLEAR, None, why)


def each_above(values: Floats, bound: float, missing: str = "") -> Decision:
    """Judge that every seed lies above a bound; a seed without a number does not.

    Args:
        values: The value of each seed (n,).
        bound: What they are to lie above.
        missing: Why seeds have no number, in a sentence.
    """
    if not np.isfinite(values).any():
        return Decision(Outcome.NOT_MEASURABLE, None, missing.rstrip(".") or "there is no number to judge")
    above = int((values > bound).sum())
    if above == len(values):
        return Decision(Outcome.HOLDS, None)
    if not above:
        return Decision(Outcome.OPPOSITE, None)
    return Decision(Outcome.UNCLEAR, None, f"it does in {above} of {len(values)} seeds")


def span(values: Floats) -> Estimate:
    """Return the mean of what was seen, from the smallest to the largest seed: no interval, for nothing is concluded.

    Args:
        values: The values of the seeds that have one.
    """
    low, high = float(values.min()), float(values.max())
    return Estimate(float(values.mean()), low, high, 1.0, len(values), "from the smallest to the largest of all seeds")
