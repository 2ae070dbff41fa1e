"""Clauses of the sentences of a comparison."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from normscope.comparing.quantities import loss_curves
from normscope.records import Outcome, Verdict, tried
from normscope.records.answers import differing, headline, separating, standing
from normscope.records.numbers import UNBOUNDED, number
from normscope.studies import Evidence

_EXCEPTIONS = 2  # other conditions that a sentence names


def sentence_of(verdict: Verdict, alone: Verdict) -> str:
    """Return the sentence of an answer: its word, what was seen, and the conditions that speak otherwise.

    Args:
        verdict: The verdict of the question, corrected by Holm.
        alone: The verdict before that.
    """
    if verdict.outcome is not alone.outcome and verdict.adjusted_p is not None:
        p = number(verdict.adjusted_p)
        why = f"alone it would be clear; among all answers together it may be chance (p = {p}, Holm)"
        verdict = replace(verdict, why=f"{why}: more seeds would tell")
    said = headline(verdict)
    if not standing(verdict).startswith("mixed") or separating(verdict):
        return said
    others = [each for each in tried(verdict)[1:] if each.outcome.decided and each.outcome is not verdict.outcome]
    but = "; ".join(f"{each.outcome.value} by {differing(verdict, each)}" for each in others[:_EXCEPTIONS])
    return f"{said} But {but}."


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
