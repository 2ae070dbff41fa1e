"""Clauses of the sentences of a comparison."""

from normscope.records import Outcome, Verdict
from normscope.records.numbers import UNBOUNDED


def does_not_learn(words: str, found: Verdict, steps: int) -> str:
    """Say that an arm does not learn, and what was seen.

    Args:
        words: The arm, as a sentence calls it.
        found: The verdict on whether it learns.
        steps: Training steps of a run.
    """
    unmeasured = found.outcome is Outcome.NOT_MEASURABLE
    seeds = f" in every seed ({found.why})" if found.why and not unmeasured else ""
    falls = without_bounds(found.finding) if found.effect.point > 0 else "its loss does not fall"
    return f"The network {words} does not learn{seeds} within {steps} steps: {found.why if unmeasured else falls}"


def without_bounds(said: str) -> str:
    """Leave out that an interval has no bound: a single seed has no interval."""
    return said.replace(f" ({UNBOUNDED})", "")
