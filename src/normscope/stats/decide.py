"""From an interval to an outcome: supported, refuted or inconclusive, by a rule fixed before the run.

The interval decides; the p-value says the same in another way. It is two-sided, so that ``p < 1 - level`` if and only
if the interval lies wholly on one side of the margin it is tested against.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from normscope._errors import DataError, UsageError
from normscope.records import Estimate, Outcome
from normscope.stats._values import as_values, check_level
from normscope.stats.intervals import LARGE, PAIRED, Method, bootstrap, hall_p, interval, looks_normal

Direction = Literal["greater", "less"]


def decide(
    effect: Estimate | ArrayLike,
    *,
    margin: float,
    level: float | None = None,
    direction: Direction = "greater",
    refuted_below: float | None = None,
    scale: str = "value",
    method: Method = "auto",
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[Outcome, float]:
    """Judge a claim of the form "the effect is beyond the margin".

    With ``direction="greater"``: *supported* if the whole interval lies above ``margin``; *refuted* if the whole
    interval lies below ``refuted_below`` (for a positive margin this holds equivalence and the opposite effect alike);
    *inconclusive* otherwise. ``direction="less"`` is the mirror image: supported below ``margin``, refuted above
    ``refuted_below``. An interval that only touches a bound decides nothing, so that two identical arms, whose
    differences are exactly zero, never support a claim at a margin of zero or more.

    Args:
        effect: An estimate, or one number per seed from which `interval` makes one.
        margin: Smallest effect of interest, on the effect's scale and with its sign: for "falls by more than 0.1" give
            ``margin=-0.1, direction="less"``.
        level: Confidence level; that of the estimate, or 0.95 for values. An estimate cannot be judged at another
            level than its own.
        direction: On which side of the margin the claim lies.
        refuted_below: Where refutation begins, if a card names two thresholds; by default ``margin`` itself.
        scale: For values: what they are.
        method: For values: as in `interval`.
        draws: For values: bootstrap resamples.
        seed: For values: seed of the resampling.

    Returns:
        The outcome, and the two-sided p-value at the bound that the outcome excludes (for an inconclusive one, at the
        bound it came nearest to excluding). Zero for an interval without width beyond the bound (exact identities),
        one for an interval without ends (a single seed). From values the p-value inverts the interval's own
        construction; from a t estimate it is exact too; from a bootstrap estimate, which no longer holds its resamples,
        each half of the interval is read as a normal one, which agrees with the interval exactly at its ends.

    Raises:
        DataError: Values that are empty or not finite, or an estimate that is NaN.
        UsageError: Unknown direction, bounds in the wrong order, or a level other than the estimate's.

    Example:
        >>> decide([0.52, 0.49, 0.51, 0.50, 0.48], margin=0.2)[0].value
        'supported'
    """
    if direction not in ("greater", "less"):
        raise UsageError(f"direction {direction!r} is not known; use 'greater' or 'less'")
    sign = 1.0 if direction == "greater" else -1.0
    upper = sign * margin
    lower = upper if refuted_below is None else sign * refuted_below
    if not (math.isfinite(upper) and math.isfinite(lower) and lower <= upper):
        raise UsageError(
            f"margin {margin} and refuted_below {refuted_below} must be finite, and refutation must not begin on the "
            f"claim's own side of the margin (direction {direction!r})"
        )
    if isinstance(effect, Estimate):
        if level is not None and level != effect.level:
            raise UsageError(f"the estimate's level is {effect.level}, not {level}; judge its values instead")
        if math.isnan(effect.low) or math.isnan(effect.high) or math.isnan(effect.point):
            raise DataError("the estimate is NaN; leave out the seeds without a value before estimating")
        estimate = effect

        def p_value(bound: float) -> float:
            return p_from_estimate(estimate, sign * bound)
    else:
        values = as_values(effect)
        level = check_level(0.95 if level is None else level)
        estimate = interval(values, scale=scale, level=level, method=method, draws=draws, seed=seed)

        def p_value(bound: float) -> float:
            return p_from_values(values, sign * bound, scale=scale, method=method, draws=draws, seed=seed)

    low, high = (estimate.low, estimate.high) if sign > 0 else (-estimate.high, -estimate.low)
    if low > upper:
        return Outcome.SUPPORTED, p_value(upper)
    if high < lower:
        return Outcome.REFUTED, p_value(lower)
    point = sign * estimate.point
    # A point between two thresholds argues for neither side.
    near = [p_value(bound) for bound, toward in ((upper, point > upper), (lower, point < lower)) if toward]
    return Outcome.INCONCLUSIVE, min(near, default=1.0)


judge = decide


def p_from_values(
    values: ArrayLike,
    bound: float,
    *,
    scale: str = "value",
    method: Method = "auto",
    draws: int = 10_000,
    seed: int = 0,
) -> float:
    """Return the two-sided p-value of "the mean is ``bound``" that belongs to `interval` on the same values.

    Args:
        values: One number per seed, shape ``(n,)``.
        bound: The mean under the null hypothesis.
        scale: As given to `interval`.
        method: As given to `interval`.
        draws: As given to `interval`.
        seed: As given to `interval`.

    Returns:
        The p-value: the smallest ``1 - level`` at which the interval excludes ``bound``. A bootstrap's is at least
        ``2 / (draws + 1)``.
    """
    from scipy.special import stdtr

    ordered = np.sort(as_values(values))
    n = ordered.size
    if n == 1:
        return 1.0
    if np.ptp(ordered) == 0:
        return 1.0 if ordered[0] == bound else 0.0
    p = 0.0
    if method in ("auto", "t"):
        statistic = (ordered.mean() - bound) / (ordered.std(ddof=1) / np.sqrt(n))
        p = min(1.0, 2 * float(stdtr(n - 1, -abs(statistic))))
    if method == "auto" and scale not in PAIRED:
        p = max(p, hall_p(ordered, bound))
    if method == "bca" or (method == "auto" and not (n >= LARGE and looks_normal(ordered))):
        tail = bootstrap(ordered, draws=draws, seed=seed).probability(bound)
        p = max(p, min(1.0, 2 * min(tail, 1 - tail)))
    return p


def p_from_estimate(estimate: Estimate, bound: float) -> float:
    """Return the two-sided p-value of "the effect is ``bound``" as far as an interval tells it.

    The half of the interval towards ``bound`` is read as a t interval's (for a bootstrap's as a normal one's); exact
    for t estimates.

    Args:
        estimate: Effect with its interval.
        bound: The effect under the null hypothesis.
    """
    from scipy.special import ndtr, ndtri, stdtr, stdtrit

    distance = abs(estimate.point - bound)
    half = estimate.point - estimate.low if bound < estimate.point else estimate.high - estimate.point
    if distance == 0 or math.isinf(half):
        return 1.0
    if half <= 0:
        return 0.0
    tail = (1 + estimate.level) / 2
    if estimate.method == "BCa bootstrap" or estimate.n < 2:
        p = 2 * float(ndtr(-distance / half * ndtri(tail)))
    else:
        p = 2 * float(stdtr(estimate.n - 1, -distance / half * stdtrit(estimate.n - 1, tail)))
    return min(1.0, p)
