"""From numbers to a word, by rules fixed before the run.

The interval decides; the p-value says the same in another way. It is two-sided, so that ``p < 1 - level`` if and only
if the interval lies wholly on one side of the bound it is tested against.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from normscope._errors import DataError, UsageError
from normscope.records import Estimate, Outcome
from normscope.stats._values import Floats, as_values, check_level
from normscope.stats.intervals import Method, interval
from normscope.stats.p_values import LEVEL, p_from_estimate, p_from_values

#: With fewer seeds than this no spread is known well enough for a word.
FEWEST_SEEDS = 3
_MOST_SEEDS = 1000
_SPREAD_LEVEL = 0.8  # of the range of the spread that a forecast of seeds rests on


class Decision(NamedTuple):
    """The word for some numbers.

    Attributes:
        outcome: The word.
        p_value: Two-sided, at the bound that the outcome excludes (for *no effect that matters* the nearer of two); for
            *unclear* at the bound that it came nearest to excluding; None for *not measurable*.
        why: What keeps the word from being decided; empty for a decided word.
    """

    outcome: Outcome
    p_value: float | None
    why: str = ""


def decide(
    effect: Estimate | ArrayLike,
    *,
    margin: float,
    level: float | None = None,
    scale: str = "value",
    method: Method = "auto",
    draws: int = 10_000,
    seed: int = 0,
) -> Decision:
    """Judge a claim of the form "the effect is positive, and large enough to matter".

    *Holds* if the whole interval lies above ``margin``, *opposite* if it lies below ``-margin``, *no effect that
    matters* if it lies between the two (equivalence, two one-sided tests of half the error each), *unclear* otherwise.
    *Not measurable* with fewer than three seeds, or where all seeds give the same number, so that their spread says
    nothing. At most one word is false at any truth, and all of them together are no more often than ``1 - level``.

    Args:
        effect: One number per seed, positive in the direction of the claim; or an estimate.
        margin: Smallest effect that matters, on the effect's scale; 0 if any effect does.
        level: Confidence level; that of the estimate, or 0.95 for values. An estimate cannot be judged at another
            level than its own.
        scale: For values: what they are.
        method: For values: as in `interval`.
        draws: For values: bootstrap resamples.
        seed: For values: seed of the resampling.

    Raises:
        DataError: Values that are empty or not finite, or an estimate that is NaN.
        UsageError: A margin that is negative or not finite, or a level other than the estimate's.

    Example:
        >>> decide([0.52, 0.49, 0.51, 0.50, 0.48], margin=0.2).outcome.value
        'holds'
    """
    _check_bound("margin", margin, least=0.0)
    if isinstance(effect, Estimate):
        return _decide_estimate(effect, margin, level)
    values, level = as_values(effect), check_level(LEVEL if level is None else level)
    if reason := unusable(values):
        return Decision(Outcome.NOT_MEASURABLE, None, reason)
    options: dict[str, Any] = {"scale": scale, "method": method, "draws": draws, "seed": seed}
    found = interval(values, level=level, **options)
    p_values = [p_from_values(values, bound, **options) for bound in (margin, -margin)]
    if found.low > margin:
        return Decision(Outcome.HOLDS, p_values[0])
    if found.high < -margin:
        return Decision(Outcome.OPPOSITE, p_values[1])
    if -margin < found.low and found.high < margin:
        return Decision(Outcome.NO_EFFECT, max(p_values))
    beyond = [p for p, toward in zip(p_values, (found.point > margin, found.point < -margin), strict=True) if toward]
    why = seeds_that_decide(values, (-margin, margin), level=level)
    return Decision(Outcome.UNCLEAR, min(beyond, default=1.0), why)


def _decide_estimate(effect: Estimate, margin: float, level: float | None) -> Decision:
    if level is not None and level != effect.level:
        raise UsageError(f"the estimate's level is {effect.level}, not {level}; judge its values instead")
    if math.isnan(effect.low) or math.isnan(effect.high) or math.isnan(effect.point):
        raise DataError("the estimate is NaN; leave out the seeds without a value before estimating")
    if effect.n < FEWEST_SEEDS:
        return Decision(Outcome.NOT_MEASURABLE, None, _too_few(effect.n))
    if effect.low > margin:
        return Decision(Outcome.HOLDS, p_from_estimate(effect, margin))
    if effect.high < -margin:
        return Decision(Outcome.OPPOSITE, p_from_estimate(effect, -margin))
    p = max(p_from_estimate(effect, margin), p_from_estimate(effect, -margin))
    if -margin < effect.low and effect.high < margin:
        return Decision(Outcome.NO_EFFECT, p)
    return Decision(Outcome.UNCLEAR, p, "the interval reaches over the margin")


def decide_count(effect: float, margin: float) -> Decision:
    """Judge a count that has no sampling error, such as bytes: by the number itself, without a p-value.

    Args:
        effect: Positive in the direction of the claim, the same in every seed.
        margin: Smallest effect that matters.
    """
    if abs(effect) <= margin:
        return Decision(Outcome.NO_EFFECT, None)
    return Decision(Outcome.HOLDS if effect > 0 else Outcome.OPPOSITE, None)


def alike(values: ArrayLike, bound: float, *, level: float = LEVEL, **options: Any) -> Decision:
    """Judge a claim of the form "the two are alike": *holds* if the whole interval lies within a bound.

    *Opposite* if the interval lies wholly beyond the bound, on either side; *unclear* otherwise; *not measurable* as in
    `decide`.

    Args:
        values: One number per seed.
        bound: Largest difference that counts as none.
        level: Confidence level.
        options: ``scale`` (``"difference"`` if left out), ``method``, ``draws`` and ``seed``, as in `decide`.

    Raises:
        DataError: As `decide`.
        UsageError: As `decide`, or the bound is not positive and finite.
    """
    _check_bound("bound", bound, least=math.ulp(0.0))
    found = decide(as_values(values), margin=bound, level=level, **{"scale": "difference", **options})
    words = {Outcome.NO_EFFECT: Outcome.HOLDS, Outcome.HOLDS: Outcome.OPPOSITE}
    return found._replace(outcome=words.get(found.outcome, found.outcome))


def no_worse(values: ArrayLike, bound: float, *, level: float = LEVEL, **options: Any) -> Decision:
    """Judge a claim of the form "the first is at least as good": *holds* if the interval lies above ``-bound``.

    Being better never counts against it. *Opposite* if the interval lies below ``-bound``; *unclear* otherwise; *not
    measurable* as in `decide`.

    Args:
        values: One number per seed.
        bound: How much worse still counts as no worse.
        level: Confidence level.
        options: ``scale`` (``"difference"`` if left out), ``method``, ``draws`` and ``seed``, as in `decide`.

    Raises:
        DataError: As `decide`.
        UsageError: As `decide`, or the bound is not positive and finite.
    """
    _check_bound("bound", bound, least=math.ulp(0.0))
    array = as_values(values)
    if reason := unusable(array):
        return Decision(Outcome.NOT_MEASURABLE, None, reason)
    options = {"scale": "difference", **options}
    found = interval(array, level=level, **options)
    p = p_from_values(array, -bound, **options)
    if found.low > -bound:
        return Decision(Outcome.HOLDS, p)
    if found.high < -bound:
        return Decision(Outcome.OPPOSITE, p)
    return Decision(Outcome.UNCLEAR, p, seeds_that_decide(array, (-bound,), level=level))


def unusable(values: Floats) -> str:
    """Say why no word can be given for some numbers; empty if one can.

    Args:
        values: One finite number a seed.
    """
    if values.size < FEWEST_SEEDS:
        return _too_few(values.size)
    if float(np.ptp(values)) <= 1e-12 * float(np.abs(values).max()):
        return f"all {values.size} seeds give the same number, so their spread says nothing"
    return ""


def _too_few(seeds: int) -> str:
    return f"{seeds} {'seed has' if seeds == 1 else 'seeds have'} a number, at least {FEWEST_SEEDS} are needed"


def seeds_that_decide(values: ArrayLike, bounds: tuple[float, ...], *, level: float = LEVEL) -> str:
    """Say how many seeds would decide, if the mean stays as it was seen.

    It is a range, for the spread of a few seeds is known within a range: that of its chi-squared distribution.

    Args:
        values: One number a seed, not all equal.
        bounds: The bounds of which the nearest must be excluded.
        level: Confidence level.

    Returns:
        ``"about 20 to 90 seeds would decide"``, or that no feasible number would.
    """
    from scipy.special import chdtri, stdtrit

    array = as_values(values)
    distance = min(abs(float(array.mean()) - bound) for bound in bounds)
    counts = np.arange(FEWEST_SEEDS, _MOST_SEEDS + 1)
    free = array.size - 1
    needed = []
    for tail in ((1 - _SPREAD_LEVEL) / 2, (1 + _SPREAD_LEVEL) / 2):
        spread = array.std(ddof=1) * math.sqrt(free / chdtri(free, tail))
        half = stdtrit(counts - 1, (1 + level) / 2) * spread / np.sqrt(counts)
        enough = counts[(half < distance) & (counts > array.size)]
        needed.append(_rounded(int(enough[0])) if len(enough) else math.inf)
    least, most = needed
    if math.isinf(least):
        return f"more than {_MOST_SEEDS} seeds would be needed: the effect is too near the margin"
    if math.isinf(most):
        return f"{least:g} seeds, or more than {_MOST_SEEDS}, would decide, if the mean stays as it is"
    count = f"{least:g}" if least == most else f"{least:g} to {most:g}"
    return f"about {count} seeds would decide, if the mean stays as it is"


def _rounded(count: int) -> int:
    """Round up to two digits: the spread of a few seeds tells no more."""
    unit = 10 ** max(0, len(str(count)) - 2)
    return math.ceil(count / unit) * unit


def _check_bound(name: str, bound: float, *, least: float) -> None:
    if not (math.isfinite(bound) and bound >= least):
        raise UsageError(f"the {name} is {bound}: give a finite number {'of at least 0' if least == 0 else 'above 0'}")
