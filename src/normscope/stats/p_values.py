"""P-values that belong to an interval, and their correction for a second look at the data."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from normscope._errors import DataError
from normscope.records import Estimate
from normscope.stats._values import as_values
from normscope.stats.intervals import LARGE, PAIRED, Method, bootstrap, hall_p, looks_normal

#: Level of intervals that are looked at once.
LEVEL = 0.95
#: Level of both looks where a run may be extended once (Pocock's boundary for two looks: 0.0294 each, 0.05 in all).
TWO_LOOKS_LEVEL = 1 - 0.029


@lru_cache(maxsize=4096)
def two_looks(p_value: float) -> float:
    r"""Return the p-value of a test that is made twice, on half of the data and on all, if the first leaves it open.

    The probability that one of two looks reaches a nominal p-value as small as this by chance, for statistics that are
    normal with correlation $\sqrt{1/2}$ (Pocock, "Group sequential methods in the design and analysis of
    clinical trials", Biometrika 64 (1977) 191-199). A nominal 0.0294 gives 0.05.

    Args:
        p_value: Nominal two-sided p-value of the look that decided, in [0, 1].

    Raises:
        DataError: The p-value is not in [0, 1].
    """
    from scipy.integrate import quad
    from scipy.special import ndtr, ndtri

    if not 0 <= p_value <= 1:
        raise DataError(f"a p-value lies between 0 and 1, got {p_value}")
    if p_value in (0.0, 1.0):
        return p_value
    bound = -float(ndtri(p_value / 2))
    root = math.sqrt(0.5)  # the correlation, and the spread that the second look adds

    def density(first: float) -> float:
        second = float(ndtr((bound - root * first) / root) - ndtr((-bound - root * first) / root))
        return math.exp(-first * first / 2) / math.sqrt(2 * math.pi) * second

    below = quad(density, -bound, bound)[0]
    # Never less than the nominal value, nor more than Bonferroni's: both limits hold exactly, the integral to rounding.
    return min(1.0, 2 * p_value, max(p_value, 1 - below))


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
