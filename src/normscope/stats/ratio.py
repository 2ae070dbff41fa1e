"""A ratio of two means, such as the share of a gain that is retained.

Fieller, E. C., "Some problems in interval estimation", J. Royal Statistical Society B 16 (1954) 175-185. The mean of
per-seed ratios has no usable interval where some denominators come near zero; the ratio of the means has, and Fieller's
says honestly when the denominator is not known to differ from zero: it is then infinite.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from normscope._errors import DataError
from normscope.records import Estimate
from normscope.stats._values import as_values, check_level


def ratio_interval(numerator: ArrayLike, denominator: ArrayLike, *, level: float = 0.95) -> Estimate:
    """Estimate mean(numerator) / mean(denominator), paired by seed, with Fieller's interval.

    Args:
        numerator: One number per seed, shape ``(n,)``.
        denominator: The same seeds in the same order, shape ``(n,)``.
        level: Confidence level of the two-sided interval.

    Returns:
        The ratio on scale ``"ratio"``. The interval is infinite for one seed, and where the mean denominator does not
        differ from zero at this level.

    Raises:
        DataError: Different numbers of seeds, none, or a value that is not finite.
        UsageError: The level is not in (0, 1).
    """
    from scipy.special import stdtrit

    top, bottom = as_values(numerator, "numerator values"), as_values(denominator, "denominator values")
    if top.size != bottom.size:
        raise DataError(
            f"{top.size} numerator values against {bottom.size} denominator values; they are paired by seed"
        )
    check_level(level)
    order = np.lexsort((bottom, top))
    top, bottom = top[order], bottom[order]
    n = int(top.size)
    # In units of their own size, so that no square overflows.
    above, below = float(np.abs(top).max()) or 1.0, float(np.abs(bottom).max()) or 1.0
    a, b = float((top / above).mean()), float((bottom / below).mean())
    unit = above / below
    undefined = math.copysign(math.inf, a) if a else 0.0
    point = a / b * unit if b != 0 else undefined
    if n == 1:
        return Estimate(point, -math.inf, math.inf, level, n, "single seed", "ratio")
    (vaa, vab), (_, vbb) = np.cov(top / above, bottom / below) / n
    t2 = float(stdtrit(n - 1, (1 + level) / 2)) ** 2
    lead = b * b - t2 * float(vbb)
    if lead <= 0:
        return Estimate(point, -math.inf, math.inf, level, n, "Fieller (denominator not apart from zero)", "ratio")
    middle = a * b - t2 * float(vab)
    root = math.sqrt(max(middle * middle - lead * (a * a - t2 * float(vaa)), 0.0))
    low, high = (middle - root) / lead * unit, (middle + root) / lead * unit
    # Rounding must not put the point outside its own interval.
    return Estimate(point, min(low, point), max(high, point), level, n, "Fieller", "ratio")
