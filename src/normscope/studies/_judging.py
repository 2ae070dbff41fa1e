"""Rules that several studies judge by: several conditions at once, ratios of gains, interpolation between runs."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from normscope._errors import DataError
from normscope.records import Estimate, Outcome, Verdict

Floats = np.ndarray


def conjunction(parts: Sequence[Verdict], alpha: float) -> tuple[Outcome, float, Verdict]:
    """Judge a claim that is to hold under every one of several conditions.

    *Supported* if every part is: an intersection-union test, whose p-value is the largest of theirs. *Refuted* if one
    part is; that one of several is looked for is paid for by multiplying its p-value by their number (Bonferroni).

    Args:
        parts: Verdicts with p-values, one a condition.
        alpha: One minus the level of their intervals.

    Returns:
        The outcome, its p-value, and the part that decided: the weakest support or the strongest refutation.
    """
    worst = min(parts, key=lambda part: part.effect.low - part.margin)
    if all(part.outcome is Outcome.SUPPORTED for part in parts):
        return Outcome.SUPPORTED, max(p_value(part) for part in parts), worst
    against = [part for part in parts if part.outcome is Outcome.REFUTED]
    if against:
        decisive = min(against, key=lambda part: (p_value(part), part.effect.high))
        p = min(1.0, len(parts) * p_value(decisive))
        return (Outcome.REFUTED if p <= alpha else Outcome.INCONCLUSIVE), p, decisive
    return Outcome.INCONCLUSIVE, 1.0, worst


def p_value(verdict: Verdict) -> float:
    """Return the verdict's p-value, one if no test was made."""
    return 1.0 if verdict.p_value is None else verdict.p_value


def ratio_of_means(numerator: ArrayLike, denominator: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Estimate mean(numerator) / mean(denominator) over paired seeds by Fieller's theorem.

    The interval holds every g for which the t interval of ``numerator - g * denominator`` holds zero (Fieller 1954).
    It has no ends if the denominator is not clearly apart from zero: then there is no gain of which a share could be
    retained.

    Args:
        numerator: One value per seed.
        denominator: One value per seed, in the same order.
        level: Confidence level.

    Returns:
        The ratio and its interval; unbounded on both sides where the data do not bound it.

    Raises:
        DataError: The two differ in length, or hold no or non-finite values.
    """
    from scipy.special import stdtrit

    a, b = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise DataError("a ratio of means needs as many finite numerators as denominators, one of each per seed")
    n = a.size
    top, bottom = float(a.mean()), float(b.mean())
    point = top / bottom if bottom else math.nan
    unbounded = Estimate(point, -math.inf, math.inf, level, n, "Fieller interval", "value")
    if n == 1:
        return unbounded
    t2 = float(stdtrit(n - 1, (1 + level) / 2)) ** 2
    (vaa, vab), (_, vbb) = np.cov(a, b) / n
    # mean(a - g b)^2 <= t^2 var(a - g b): a quadratic in g, an interval if its leading coefficient is positive.
    lead, half, last = bottom**2 - t2 * vbb, top * bottom - t2 * vab, top**2 - t2 * vaa
    if lead <= 0:
        return unbounded
    spread = math.sqrt(max(0.0, half**2 - lead * last))
    return Estimate(point, (half - spread) / lead, (half + spread) / lead, level, n, "Fieller interval", "value")


def interpolate(x: ArrayLike, y: ArrayLike, at: float) -> float:
    """Return y at ``at`` on the line through the points (log x, y), NaN outside their range.

    Args:
        x: Positive, any order; points with non-finite x or y are left out.
        y: Same length.
        at: Positive.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    keep = np.isfinite(xs) & np.isfinite(ys) & (xs > 0)
    if not keep.any() or not (math.isfinite(at) and at > 0):
        return math.nan
    order = np.argsort(xs[keep])
    logs, values = np.log(xs[keep][order]), ys[keep][order]
    where = math.log(at)
    if not logs[0] - 1e-9 <= where <= logs[-1] + 1e-9:
        return math.nan
    return float(np.interp(where, logs, values))


def usable(*columns: Floats) -> np.ndarray:
    """Return which seeds have a finite value in every column."""
    keep = np.ones(len(columns[0]), dtype=bool)
    for column in columns:
        keep &= np.isfinite(column)
    return keep


def unmeasured(n: int, level: float, scale: str) -> Estimate:
    """Return the estimate of something that no seed allows to estimate."""
    return Estimate(math.nan, -math.inf, math.inf, level, n, "not measured", scale)
