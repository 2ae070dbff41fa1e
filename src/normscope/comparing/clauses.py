"""Clauses of the sentences of a comparison."""

from collections.abc import Sequence

import numpy as np

from normscope.comparing.quantities import loss_curves
from normscope.records import Outcome, Verdict
from normscope.records.numbers import UNBOUNDED
from normscope.studies import Evidence


def how_to_read(verdicts: Sequence[Verdict]) -> str:
    """Say what the intervals of answers are, and that their words are corrected for being read together.

    Args:
        verdicts: The verdicts of all questions, corrected by Holm.
    """
    shown = [verdict.effect for verdict in verdicts if verdict.outcome is not Outcome.NOT_MEASURABLE]
    if not shown:
        return ""
    levels = " or ".join(f"{100 * level:.3g} %" for level in sorted({effect.level for effect in shown}))
    said = f"In brackets: the interval of {levels} over the seeds, of each answer taken alone"
    together = sum(verdict.adjusted_p is not None for verdict in verdicts)
    if together < 2:
        return said
    return (
        f"{said}. The words are stricter, for {together} answers are read together: each needs more to be clear (Holm)"
    )


def listed(words: Sequence[str]) -> str:
    """Join words: ``"a"``, ``"a and b"``, ``"a, b and c"``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def does_not_learn(words: str, found: Verdict, steps: int) -> str:
    """Say that an arm does not learn, and what was seen.

    Args:
        words: The arm, as a sentence calls it.
        found: The verdict on whether it learns.
        steps: Training steps of a run.
    """
    unmeasured = found.outcome is Outcome.NOT_MEASURABLE
    seeds = f" in every seed ({found.why})" if found.why and not unmeasured else ""
    seen = found.why if unmeasured else without_bounds(found.finding)
    return f"The network {words} does not learn{seeds} within {steps} steps: {seen}"


def same_at_all_rates(evidence: Evidence, arm: str, words: str) -> str:
    """Say that an arm trains alike at all learning rates that were tried; empty if it does not, or one was tried.

    Args:
        evidence: The records.
        arm: Its name.
        words: The arm, as a sentence calls it.
    """
    rates = evidence.settings["rates"]
    curves = [loss_curves(evidence, arm=arm, rate=rate) for rate in rates]
    if len(rates) < 2 or not all(np.array_equal(curves[0], each, equal_nan=True) for each in curves):
        return ""
    return f"The network {words} trains alike at all learning rates: its step sets the learning rate itself"


def without_bounds(said: str) -> str:
    """Leave out that an interval has no bound: a single seed has no interval."""
    return said.replace(f" ({UNBOUNDED})", "")
