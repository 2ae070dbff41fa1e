"""Times to a target that not every run reaches: Kaplan-Meier, and the mean restricted to a horizon."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normscope._errors import DataError
from normscope.records import Estimate
from normscope.stats._values import Floats, as_values, check_level


def kaplan_meier(times: ArrayLike, reached: ArrayLike) -> tuple[Floats, Floats]:
    """Estimate the share of runs that have not reached the target yet.

    A run that stops at its time without having reached the target (the end of training, a divergence) counts among
    those at risk until then, and says nothing of what would have come after. Computed by ``scipy.stats.ecdf``.

    Args:
        times: Time of each run: when it reached the target, or when it stopped, shape ``(n,)``, not negative.
        reached: Whether it reached the target, shape ``(n,)``.

    Returns:
        The times at which targets were reached, rising, and the share left behind each of them; both ``(k,)``.

    Raises:
        DataError: No run, a time that is negative or not finite, or shapes that do not fit.
    """
    from scipy.stats import CensoredData, ecdf

    when, hit = _checked(times, reached)
    found = ecdf(CensoredData(uncensored=when[hit], right=when[~hit])).sf
    steps = np.unique(when[hit])
    left: Floats = found.evaluate(steps)
    return steps, left


def restricted_mean(times: ArrayLike, reached: ArrayLike, horizon: float, *, level: float = 0.95) -> Estimate:
    """Estimate the mean of the time to the target or the horizon, whichever comes first.

    The area under the Kaplan-Meier curve up to the horizon, with the normal interval by Greenwood's variance
    (Klein & Moeschberger 2003, section 4.5, without their factor for small samples). Where all runs go on to the
    horizon it is the mean of ``min(time, horizon)``, which is what studies compare in pairs by seed.

    Args:
        times: Time of each run: when it reached the target, or when it stopped, shape ``(n,)``.
        reached: Whether it reached the target, shape ``(n,)``.
        horizon: Up to where; a run may not have stopped before it if it is the longest.
        level: Confidence level of the interval.

    Returns:
        The mean in units of ``times``, scale ``"value"``.

    Raises:
        DataError: As in ``kaplan_meier``; a horizon that is not positive; every run stopped before the horizon with
            the target not reached, so that nothing is known of what lies between.
    """
    when, hit = _checked(times, reached)
    check_level(level)
    if not horizon > 0:
        raise DataError(f"the horizon must be positive, got {horizon}")
    hit = hit & (when <= horizon)
    when = np.minimum(when, horizon)
    steps, left = kaplan_meier(when, hit)
    if (when.max() < horizon and len(left) and left[-1] > 0) or (when.max() < horizon and not len(left)):
        raise DataError(f"no run goes on to {horizon:g}: give a horizon of at most {when.max():g}")
    edges = np.concatenate([[0.0], steps, [horizon]])
    shares = np.concatenate([[1.0], left])
    areas = shares * np.diff(edges)
    mean = float(areas.sum())
    variance = 0.0
    for index, step in enumerate(steps):
        at_risk = float((when >= step).sum())
        reaching = float((hit & (when == step)).sum())
        beyond = float(areas[index + 1 :].sum())
        if at_risk > reaching:
            variance += beyond**2 * reaching / (at_risk * (at_risk - reaching))
    from scipy.special import ndtri

    half = float(ndtri((1 + level) / 2)) * float(np.sqrt(variance))
    return Estimate(mean, mean - half, mean + half, level, len(when), "restricted mean, Greenwood", "value")


def _checked(times: ArrayLike, reached: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    when = as_values(times, "times")
    hit = np.asarray(reached, dtype=bool)
    if hit.shape != when.shape:
        raise DataError(f"times have shape {when.shape} and reached has {hit.shape}: give one of each for a run")
    if (when < 0).any():
        raise DataError("a time is negative: times count from the start of a run")
    return when, hit
