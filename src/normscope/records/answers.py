"""What a study answers: sentences composed of the words of its contrasts, by rules that need no record.

A condensed file holds the contrasts, so that its sentences can be composed again under later rules without a run.
"""

from dataclasses import replace

from normscope.records.numbers import number
from normscope.records.text import Answer
from normscope.records.verdict import Outcome, Verdict

_LEADS = {
    Outcome.HOLDS: "Yes",
    Outcome.OPPOSITE: "No, the opposite",
    Outcome.NO_EFFECT: "No effect that matters",
    Outcome.UNCLEAR: "Unclear",
    Outcome.NOT_MEASURABLE: "Not measurable",
    Outcome.EXACT: "Exact",
    Outcome.FALSE: "False",
}
_TURNED = {
    Outcome.HOLDS: Outcome.OPPOSITE,
    Outcome.OPPOSITE: Outcome.HOLDS,
    Outcome.NO_EFFECT: Outcome.HOLDS,
    Outcome.EXACT: Outcome.FALSE,
    Outcome.FALSE: Outcome.EXACT,
}
_EXCEPTIONS = 2  # other conditions that a sentence names
_SHOWN = 4  # conditions that a sentence names under one word


def tried(verdict: Verdict) -> tuple[Verdict, ...]:
    """Return the contrasts that test a study's claim: the headline first, then what was also tried."""
    return (verdict, *(part for part in verdict.parts if part.claim == verdict.claim))


def separating(verdict: Verdict) -> tuple[str, ...]:
    """Return the names of the conditions on which a claim depends.

    A claim depends on a condition if a contrast that differs from the headline in that condition alone has another
    word; words that are not decided tell nothing.
    """
    found = []
    for other in tried(verdict)[1:]:
        if _separates(verdict, other):
            found += _differing(verdict, other)
    return tuple(dict.fromkeys(found)) if verdict.outcome.decided else ()


def standing(verdict: Verdict) -> str:
    """Return how a study's claim stands over all conditions that were tried.

    Returns:
        The headline's word where no decided word differs from it, ``"depends on the depth"`` where a change of that
        condition alone changes the word, ``"mixed: holds under 3 of 5 conditions"`` otherwise.
    """
    decided = [each for each in tried(verdict) if each.outcome.decided]
    if not verdict.outcome.decided or len({each.outcome for each in decided}) == 1:
        return verdict.outcome.value
    if names := separating(verdict):
        return f"depends on the {' and the '.join(names)}"
    holding = sum(each.outcome.in_favour for each in decided)
    return f"mixed: holds under {holding} of {len(decided)} conditions"


def answer(verdict: Verdict) -> str:
    """Return what a study answers, for a person who asks the question of its claim.

    The headline first, in natural units, with the networks and data that it is about; then what else was tried, by
    word.
    """
    return " ".join(part for part in (headline(verdict), also_tried(verdict)) if part)


def headline(verdict: Verdict) -> str:
    """Return the sentence of a headline: its word, what was seen, and on what it depends or what keeps it undecided."""
    here = f" Here: {verdict.here}." if verdict.here and not verdict.outcome.of_identity else ""
    lead = _LEADS[verdict.outcome]
    if verdict.outcome is Outcome.NOT_MEASURABLE:
        return f"{lead}: {verdict.why.rstrip('.')}.{here}"
    why = f" {capital(verdict.why.rstrip('.'))}." if verdict.why else ""
    return f"{lead}: {verdict.finding.rstrip('.')}.{_but(verdict)}{why}{here}"


def corrected(verdict: Verdict, alone: Verdict) -> str:
    """Return the sentence of a corrected verdict: its word, what was seen, and the conditions that speak otherwise.

    Args:
        verdict: The verdict, corrected by Holm for being read together with others.
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


def _but(verdict: Verdict) -> str:
    """Name the conditions that alone change the word of a headline, at most two of them."""
    exceptions = [
        f"{other.outcome.value} with {differing(verdict, other)} ({other.amount})"
        for other in tried(verdict)[1:]
        if verdict.outcome.decided and _separates(verdict, other)
    ]
    return f" But {'; '.join(exceptions[:2])}." if exceptions else ""


def also_tried(verdict: Verdict) -> str:
    """Return the words of the other contrasts of the same claim, each with its condition and effect."""
    groups: dict[Outcome, list[str]] = {}
    for other in tried(verdict)[1:]:
        said = differing(verdict, other)
        amount = f" ({other.amount})" if other.amount and other.outcome.decided else ""
        groups.setdefault(other.outcome, []).append(f"{said}{amount}")
    parts = []
    for outcome in Outcome:
        if listed := groups.get(outcome):
            more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
            parts.append(f"{outcome.value} with {'; '.join(listed[:_SHOWN])}{more}")
    return f"Also tried: {'. '.join(map(capital, parts))}." if parts else ""


def contrast_named(verdict: Verdict, name: str) -> Verdict | None:
    """Return a study's contrast by its name; the headline for an empty name, None if there is none of that name."""
    return next((each for each in (verdict, *verdict.parts) if name in ("", each.name)), None)


def outcome_of(answer: Answer, verdict: Verdict) -> Outcome | None:
    """Return the word for a sentence: that of the contrast that tests it, turned round where the sentence denies it.

    Args:
        answer: The contrast that tests the sentence.
        verdict: The verdict of its study.

    Returns:
        The word; None if the study has no contrast of that name. A denied effect that does not matter holds.
    """
    found = contrast_named(verdict, answer.contrast)
    if found is None:
        return None
    return _TURNED.get(found.outcome, found.outcome) if answer.negated else found.outcome


def differing(verdict: Verdict, other: Verdict) -> str:
    """Name the conditions in which another contrast differs from a headline; its endpoint where none does."""
    names = _differing(verdict, other)
    values = [condition.value for condition in other.conditions if condition.name in names]
    return ", ".join(values) or other.endpoint


def _differing(verdict: Verdict, other: Verdict) -> list[str]:
    """Return the names of the conditions whose values differ."""
    ours, theirs = ({each.name: each.value for each in side.conditions} for side in (verdict, other))
    return [name for name in dict.fromkeys([*ours, *theirs]) if ours.get(name) != theirs.get(name)]


def _separates(verdict: Verdict, other: Verdict) -> bool:
    """Say whether one changed condition gives another contrast of the same claim another decided word."""
    changed = other.outcome.decided and other.outcome is not verdict.outcome
    return changed and len(_differing(verdict, other)) == 1


def capital(words: str) -> str:
    """Return words with a capital at the beginning, the rest as it is."""
    return words[:1].upper() + words[1:]
