"""How the answer of a study is shown: its word, sign and colour, and how many claims have which word."""

import math
import re
from collections import Counter
from collections.abc import Sequence

from normscope.plots import margin_words, outcome_icon
from normscope.records import Outcome, Verdict, standing
from normscope.records.numbers import UNBOUNDED, counted as counted

#: Stands in place of a word where there are too few seeds for one.
DESCRIBED = "described"
_INTERVAL = re.compile(r"^(?P<point>.*?) \((?P<interval>[^()]*)\)$", re.DOTALL)
_DEPENDS, _MIXED = "depends", "mixed"
_COUNTED = {
    Outcome.HOLDS.value: ("holds", "hold"),
    _DEPENDS: ("depends on a condition", "depend on a condition"),
    _MIXED: ("is mixed", "are mixed"),
    Outcome.OPPOSITE.value: ("is the opposite", "are the opposite"),
    Outcome.NO_EFFECT.value: ("has no effect that matters", "have no effect that matters"),
    Outcome.UNCLEAR.value: ("is unclear", "are unclear"),
    Outcome.NOT_MEASURABLE.value: ("is not measurable", "are not measurable"),
    Outcome.EXACT.value: ("is exact", "are exact"),
    Outcome.FALSE.value: ("is false", "are false"),
}


def is_identity(verdict: Verdict) -> bool:
    """Tell whether a verdict is about algebra, which stands apart from experiments and is not counted with them."""
    return verdict.outcome.of_identity or verdict.effect.scale == "error"


def kind_of(verdict: Verdict) -> str:
    """Return the kind of a study's answer: the headline's word, ``"depends"`` or ``"mixed"``."""
    word = standing(verdict)
    return word if word in _COUNTED else _DEPENDS if word.startswith("depends") else _MIXED


def sign_of(verdict: Verdict) -> str:
    """Return the one-character sign of a study's answer."""
    kind = kind_of(verdict)
    return "◐" if kind in (_DEPENDS, _MIXED) else outcome_icon(verdict.outcome)


def colour_class(kind: str) -> str:
    """Return the name of a word in the page's styles: ``"no-effect-that-matters"``."""
    return kind.replace(" ", "-")


def amount_of(verdict: Verdict) -> str:
    """Return the effect in natural units; empty where nothing was measurable."""
    return "" if verdict.outcome is Outcome.NOT_MEASURABLE else verdict.amount


def margin_of(verdict: Verdict) -> str:
    """Return the smallest effect that matters, with the reason."""
    size = margin_words(verdict.margin, verdict.effect.scale, verdict.effect.unit)
    return f"{size}: {verdict.margin_reason}" if verdict.margin_reason else size


def is_described(verdict: Verdict) -> bool:
    """Tell whether a verdict of too few seeds has a number that can be described."""
    return verdict.outcome is not Outcome.NOT_MEASURABLE or math.isfinite(verdict.effect.point)


def described_amount(verdict: Verdict) -> str:
    """Return the effect in natural units where it is described, and not judged: no interval, if a seed gives none."""
    return verdict.amount.removesuffix(f" ({UNBOUNDED})") if is_described(verdict) else ""


def point_and_interval(amount: str) -> tuple[str, str]:
    """Split an effect in natural units, ``"6.1 times narrower (5.2 to 7.1)"``, into the point and the interval.

    Returns:
        The interval is empty where there is none, and the point is then the whole.
    """
    match = _INTERVAL.match(amount)
    return (match["point"], match["interval"]) if match else (amount, "")


def tally(verdicts: Sequence[Verdict]) -> str:
    """Count the claims with each answer: ``"3 claims: 2 hold, 1 is unclear; 1 identity apart: 1 is exact."``."""
    experiments = [verdict for verdict in verdicts if not is_identity(verdict)]
    identities = [verdict for verdict in verdicts if is_identity(verdict)]
    said = []
    if experiments or not identities:
        said.append(counted(len(experiments), "claim") + _by_kind(experiments))
    if identities:
        apart = " apart" if experiments else ""
        said.append(counted(len(identities), "identity", "identities") + apart + _by_kind(identities))
    return f"{'; '.join(said)}."


def _by_kind(verdicts: Sequence[Verdict]) -> str:
    counts = Counter(kind_of(verdict) for verdict in verdicts)
    said = [f"{counts[kind]} {words[counts[kind] > 1]}" for kind, words in _COUNTED.items() if counts[kind]]
    return f": {', '.join(said)}" if said else ""


def p_words(verdict: Verdict) -> tuple[str, str]:
    """Return what a verdict's p-value is, and the p-value, in words; two empty strings where there is none.

    An identity has no sampling error, and what is not measurable has no test: neither shows a p-value.
    """
    if is_identity(verdict) or verdict.outcome is Outcome.NOT_MEASURABLE or verdict.p_value is None:
        return "", ""
    corrected = verdict.adjusted_p is not None
    p = verdict.adjusted_p if verdict.adjusted_p is not None else verdict.p_value
    return "after Holm" if corrected else "uncorrected", "p < 0.001" if p < 1e-3 else f"p = {p:.2g}"
