"""Rules that several studies judge by: several conditions at once, own best learning rates, interpolation."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from normscope.records import Outcome, Verdict
from normscope.stats import decide, interval, tost
from normscope.studies.contrast import conjunction as conjunction, unmeasured as unmeasured
from normscope.studies.evidence import Evidence

if TYPE_CHECKING:
    from normscope.studies.study import AbstractStudy

Floats = np.ndarray


def best_rate(evidence: Evidence, arm: str) -> float:
    """Return the learning rate at which an arm has the least validation loss at the end, geometric mean over seeds.

    A run that diverged has none, and rules its learning rate out; if that leaves nothing, the smallest is taken.
    """
    frame = evidence.select(probe="training", name="val_loss", arm=arm)
    rates: list[float] = sorted(evidence.select(arm=arm)["lr"].unique().to_list())
    means = [float(np.log(evidence.per_seed(frame.filter(pl.col("lr") == rate))).mean()) for rate in rates]
    finite = [(mean, rate) for mean, rate in zip(means, rates, strict=True) if math.isfinite(mean)]
    return min(finite)[1] if finite else rates[0]


def interpolate(x: ArrayLike, y: ArrayLike, at: float) -> float:
    """Return y at ``at`` on the line through the points (log x, y), NaN outside their range.

    Args:
        x: Positive, in the order of the grid that made them. Only its rising beginning is used: where x falls again
            (updates shrink once a learning rate has blown the weights up) the same x stands for another regime.
        y: Same length. Points with non-finite x or y are left out.
        at: Positive.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    keep = np.isfinite(xs) & np.isfinite(ys) & (xs > 0)
    if not keep.any() or not (math.isfinite(at) and at > 0):
        return math.nan
    logs, values = np.log(xs[keep]), ys[keep]
    falls = np.flatnonzero(np.diff(logs) <= 0)
    if len(falls):
        logs, values = logs[: falls[0] + 1], values[: falls[0] + 1]
    where = math.log(at)
    if not logs[0] - 1e-9 <= where <= logs[-1] + 1e-9:
        return math.nan
    return float(np.interp(where, logs, values))


def with_parts(verdict: Verdict, parts: Sequence[Verdict], reason: str = "") -> Verdict:
    """Return a study's primary verdict with its other endpoints, and more to its reason if given."""
    said = f"{verdict.reason} {reason}".strip()
    return replace(verdict, parts=tuple(parts), reason=said, primary=True)


def exact(
    study: "AbstractStudy",
    evidence: Evidence,
    errors: ArrayLike,
    bound: float,
    *,
    claim: str,
    endpoint: str,
    primary: bool = False,
) -> Verdict:
    """Judge an identity: supported if its error is below a bound in every seed, refuted if in none, else inconclusive.

    The effect is how many powers of ten the error lies below the bound. No sampling is behind an identity: the p-value
    is 0 where all seeds agree.

    Args:
        study: Whose claim it is.
        evidence: Gives the level.
        errors: One relative error per seed, the largest of all its checks; NaN counts as infinite.
        bound: What rounding is allowed to make of it.
        claim: The identity, in a sentence.
        endpoint: What the error is of.
        primary: Whether it decides the study.
    """
    found = np.nan_to_num(np.asarray(errors, dtype=np.float64), nan=np.inf)
    below = math.log10(bound) - np.log10(np.clip(found, 1e-18, 1e18))
    agree = "supported" if bool((below > 0).all()) else "refuted" if bool((below <= 0).all()) else "inconclusive"
    effect = interval(below, scale="value", level=evidence.level)
    return study.verdict(
        Outcome(agree),
        effect,
        claim=claim,
        endpoint=f"{endpoint}: powers of ten below {bound:g}",
        margin=0.0,
        p_value=1.0 if agree == "inconclusive" else 0.0,
        reason=f"The largest error of {len(found)} seeds is {float(found.max()):.1e}; {bound:g} is allowed.",
        primary=primary,
    )


def equivalent(
    study: "AbstractStudy",
    evidence: Evidence,
    values: ArrayLike,
    bound: float,
    *,
    claim: str,
    endpoint: str,
    reason: str,
    scale: str = "difference",
    primary: bool = False,
) -> Verdict:
    """Judge that two things are alike: supported if their difference lies within a bound, by two one-sided tests.

    Refuted if the interval lies wholly outside the bound, on either side.

    Args:
        study: Whose claim it is.
        evidence: Gives the level.
        values: One difference (or log-ratio) per seed; those that are not finite are left out.
        bound: Largest difference that counts as none, positive.
        claim: The claim, in a sentence.
        endpoint: What the difference is of.
        reason: A sentence with the numbers.
        scale: What the values are.
        primary: Whether it decides the study.
    """
    numbers = np.asarray(values, dtype=np.float64)
    kept = numbers[np.isfinite(numbers)]
    if not len(kept):
        effect = unmeasured(evidence.level, scale)
        outcome, p = Outcome.INCONCLUSIVE, 1.0
    else:
        effect = interval(kept, scale=scale, level=evidence.level)
        alike, p, _ = tost(kept, low=-bound, high=bound, level=evidence.level, scale=scale)
        outcome = Outcome.SUPPORTED if alike else Outcome.INCONCLUSIVE
        if not alike:
            above, p_above = decide(kept, margin=bound, level=evidence.level, scale=scale)
            below, p_below = decide(-kept, margin=bound, level=evidence.level, scale=scale)
            if Outcome.SUPPORTED in (above, below):
                outcome, p = Outcome.REFUTED, min(p_above, p_below)
    return study.verdict(
        outcome, effect, claim=claim, endpoint=endpoint, margin=bound, p_value=p, reason=reason, primary=primary
    )
