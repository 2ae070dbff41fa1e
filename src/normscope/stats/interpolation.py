"""Interpolation on a logarithmic axis."""

import math

import numpy as np
from numpy.typing import ArrayLike


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
