"""Equivalence: the effect lies within bounds, by two one-sided tests.

Schuirmann, D. J., "A comparison of the two one-sided tests procedure and the power approach for assessing the
equivalence of average bioavailability", J. Pharmacokinetics and Biopharmaceutics 15 (1987) 657-680.
"""

import math

from numpy.typing import ArrayLike

from normscope._errors import UsageError
from normscope.records import Estimate
from normscope.stats._values import as_values, check_level
from normscope.stats.intervals import Method, interval
from normscope.stats.p_values import p_from_values


def tost(
    values: ArrayLike,
    *,
    low: float,
    high: float,
    level: float = 0.95,
    scale: str = "value",
    method: Method = "auto",
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[bool, float, Estimate]:
    """Test whether the mean lies strictly between ``low`` and ``high``.

    Each one-sided test has size ``1 - level``, and so has the procedure. It concludes equivalence if and only if the
    interval at level ``2 level - 1`` (90 % for 0.95) lies within the bounds.

    Args:
        values: One number per seed (a paired difference or log-ratio), shape ``(n,)``.
        low: Lower bound of equivalence, on the values' scale.
        high: Upper bound of equivalence.
        level: One minus the size of the test, above 0.5.
        scale: What the values are; kept in the estimate.
        method: As in `interval`.
        draws: Bootstrap resamples.
        seed: Seed of the resampling.

    Returns:
        Whether equivalence is concluded, the larger of the two one-sided p-values, and the estimate with the interval
        at level ``2 level - 1``. A single seed concludes nothing (p-value 1).

    Raises:
        DataError: No value, or a value that is not finite.
        UsageError: The bounds are not finite and in order, or the level is not above 0.5.
    """
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(f"equivalence bounds {low} and {high} must be finite and in order")
    if check_level(level) <= 0.5:
        raise UsageError(f"level is {level}; a test of equivalence needs one above 0.5, such as 0.95")
    array = as_values(values)
    estimate = interval(array, scale=scale, level=round(2 * level - 1, 12), method=method, draws=draws, seed=seed)

    def one_sided(bound: float, inward: bool) -> float:
        both = p_from_values(array, bound, scale=scale, method=method, draws=draws, seed=seed)
        return both / 2 if inward else 1 - both / 2

    if array.size == 1:
        return False, 1.0, estimate
    p_value = max(one_sided(low, estimate.point > low), one_sided(high, estimate.point < high))
    return low < estimate.low and estimate.high < high, p_value, estimate
