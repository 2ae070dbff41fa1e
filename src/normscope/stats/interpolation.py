"""Interpolation on a logarithmic axis: a value at a place, and the place of a value."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from normscope.stats._values import Floats


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


class Extent(NamedTuple):
    """How far along an axis values stay high.

    Attributes:
        low: Natural logarithm of the lowest x at which they do.
        high: Natural logarithm of the highest.
        below: Whether they still do at the lowest x, so that ``low`` is only a bound.
        above: Whether they still do at the highest x, so that ``high`` is only a bound.
    """

    low: float
    high: float
    below: bool
    above: bool


def extent(x: ArrayLike, y: ArrayLike, share: float) -> Extent:
    """Return the stretch around the largest y over which y is at least a share of it.

    Its ends lie between points, on lines through the points (log x, y), so that they are no multiples of the grid's
    steps.

    Args:
        x: Positive, rising (n,).
        y: Finite, not negative (n,). Where all are 0 the stretch is the whole axis.
        share: In (0, 1].
    """
    logs, values = np.log(np.asarray(x, dtype=np.float64)), np.asarray(y, dtype=np.float64)
    best = int(values.argmax())
    least = share * values[best]
    high = _crossing(logs[best:], values[best:], least)
    low = _crossing(-logs[: best + 1][::-1], values[: best + 1][::-1], least)
    ends = (-logs[0] if low is None else low, logs[-1] if high is None else high)
    return Extent(-float(ends[0]), float(ends[1]), low is None, high is None)


def _crossing(x: Floats, y: Floats, least: float) -> float | None:
    """Return where y first falls below a bound that its first value keeps; None if it never does."""
    under = np.flatnonzero(y < least)
    if not len(under):
        return None
    after, before = under[0], under[0] - 1
    return float(x[before] + (x[after] - x[before]) * (y[before] - least) / (y[before] - y[after]))
