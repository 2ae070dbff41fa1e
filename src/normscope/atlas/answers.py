"""The answers of a comparison that was kept, composed again by the rules of this version."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from normscope.atlas.kept import KeptContrast, verdict_of
from normscope.atlas.layout import KeptComparison, KeptQuestion
from normscope.records import Outcome, Verdict
from normscope.records.answers import corrected
from normscope.stats import adjust


@dataclass(frozen=True)
class KeptAnswer:
    """The answer to a question on one network.

    Attributes:
        question: The question, with its contrasts.
        verdict: Its word and numbers, corrected by Holm over the questions of the comparison; the other contrasts are
            its parts.
        sentence: The answer in a sentence or two.
    """

    question: KeptQuestion
    verdict: Verdict
    sentence: str


def answers_of(kept: KeptComparison, codes: Collection[str] | None = None) -> list[KeptAnswer]:
    """Return the answers in order, as the comparison itself gives them.

    Args:
        kept: The comparison.
        codes: Questions to answer; all of them if None. Each answer is the same whichever questions are named.
    """
    # What was also tried takes most of the time, so it is judged of the named questions alone.
    alone = [
        _judged(question, kept) if codes is None or question.code in codes else _headline(question, kept)
        for question in kept.questions
    ]
    idle = [kept.arms[arm] for arm in kept.pair if not learns(kept, arm)]
    return [
        KeptAnswer(question, together, _sentence(together, before, idle))
        for question, before, together in zip(kept.questions, alone, adjust(alone), strict=True)
        if codes is None or question.code in codes
    ]


def outcomes_of(kept: KeptComparison) -> dict[str, Outcome]:
    """Return the word for each question, by its code: as `answers_of`, without judging what was also tried."""
    codes = [question.code for question in kept.questions]
    alone = [_headline(question, kept) for question in kept.questions]
    return {code: verdict.outcome for code, verdict in zip(codes, adjust(alone), strict=True)}


def learns(kept: KeptComparison, arm: str) -> bool:
    """Say whether an arm learns in every seed."""
    return verdict_of(kept.learning[arm], {}, kept.seeds, kept.level).outcome.in_favour


def _judged(question: KeptQuestion, kept: KeptComparison) -> Verdict:
    others = [_verdict(contrast, question, kept) for contrast in question.contrasts[1:]]
    return replace(_headline(question, kept), parts=tuple(others))


def _headline(question: KeptQuestion, kept: KeptComparison) -> Verdict:
    found = _verdict(question.contrasts[0], question, kept, primary=True)
    if question.lacks:
        return replace(found, outcome=Outcome.NOT_MEASURABLE, p_value=None, why=question.lacks)
    return found


def _verdict(contrast: KeptContrast, question: KeptQuestion, kept: KeptComparison, *, primary: bool = False) -> Verdict:
    found = verdict_of(contrast, kept.learning, kept.seeds, kept.level, primary=primary)
    return replace(found, study=question.code)


def _sentence(verdict: Verdict, alone: Verdict, idle: Sequence[str]) -> str:
    if verdict.outcome is Outcome.NOT_MEASURABLE and idle and not all(premise.met for premise in verdict.premises):
        return not_learning(idle)
    return corrected(verdict, alone)


def not_learning(idle: Sequence[str]) -> str:
    """Say that a question says nothing since arms do not learn.

    Args:
        idle: Words for those arms.
    """
    return f"Not measurable: {'; '.join(f'the network {words} does not learn' for words in idle)}."
