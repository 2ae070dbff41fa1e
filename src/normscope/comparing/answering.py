"""How a verdict becomes the answer to a question, in a sentence or two."""

import math
from collections.abc import Sequence
from dataclasses import replace

from normscope.atlas import committed, not_learning
from normscope.comparing.clauses import without_bounds
from normscope.comparing.page import Answer
from normscope.comparing.question import AbstractQuestion, Pair
from normscope.records import Outcome, Verdict
from normscope.records.answers import capital, corrected
from normscope.records.numbers import counted
from normscope.stats.decide import FEWEST_SEEDS
from normscope.studies import Evidence


def answered(
    question: AbstractQuestion,
    verdict: Verdict,
    evidence: Evidence,
    pairs: Sequence[Pair],
    idle: Sequence[str],
    *,
    alone: Verdict,
) -> Answer:
    """Return the answer to a question.

    Args:
        question: The question.
        verdict: Its verdict, corrected for the company of the other questions.
        evidence: The records.
        pairs: The pairs of arms, the pair that decides first.
        idle: Words for the arms of that pair that do not learn.
        alone: The verdict before it was corrected.
    """
    asks, seeds = question.asks(pairs[0]), len(evidence.seeds)
    if seeds < FEWEST_SEEDS and not question.lacks(evidence) and math.isfinite(verdict.effect.point):
        seen = without_bounds(verdict.finding).rstrip(".")
        if verdict.effect.point == 0 and verdict.effect.scale != "value":  # "0 less" is no way to speak
            seen = f"no difference ({verdict.reason.rstrip('.')})"
        sentence = f"Described, not judged ({counted(seeds, 'seed')}): {seen}."
        return Answer(question, asks, verdict, sentence, described=True)
    beside = committed().beside(question.CODE, verdict.outcome, (pairs[0].first, pairs[0].second))
    if verdict.outcome is Outcome.NOT_MEASURABLE and idle and not all(premise.met for premise in verdict.premises):
        return Answer(question, asks, verdict, not_learning(idle), beside=beside)
    said = f"{corrected(verdict, alone)}{_beside(question, evidence, pairs[1:])}"
    return Answer(question, asks, verdict, said, beside=beside)


def _beside(question: AbstractQuestion, evidence: Evidence, pairs: Sequence[Pair]) -> str:
    """Say in short what the pairs give that do not decide, where the question is about their other arm too."""
    said = []
    for pair in pairs:
        first = next(iter(question.contrasts(evidence, pair)), None)
        if first is not None and pair.second in (first.first, first.second):
            found = question.judge(evidence, [replace(pair, headline=True)])
            amount = f", {found.amount}" if found.outcome.decided else ""
            said.append(f"beside the network {pair.words[1]}: {found.outcome.value}{amount}")
    return f" {capital('; '.join(said))}." if said else ""


def number_of(answer: Answer, arm: str, evidence: Evidence, pairs: Sequence[Pair]) -> str:
    """Return the number of an arm in the contrast that decides, in words; empty where there is none."""
    pair = next((pair for pair in pairs if arm in (pair.first, pair.second)), pairs[0])
    contrast = next(iter(answer.question.contrasts(evidence, pair)), None)
    if contrast is None:  # the question says nothing of this pair
        return ""
    reading = contrast.read(evidence)
    side = reading.first if contrast.first == arm else reading.second if contrast.second == arm else None
    return "" if side is None or side.values is None else contrast.quantity.typical(side.values)
