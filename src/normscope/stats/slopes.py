"""Slopes, fitted per seed: trends are estimated within a seed, and their uncertainty between seeds."""

import numpy as np
from numpy.typing import ArrayLike

from normscope._errors import DataError
from normscope.stats._values import Floats


def slope_per_seed(x: ArrayLike, y: ArrayLike) -> Floats:
    """Fit a straight line to each seed's points by least squares and return its slope.

    Args:
        x: Abscissa (layer index, log step), shape ``(points,)`` shared by the seeds or ``(n, points)``.
        y: Ordinate per seed, shape ``(n, points)``, or ``(points,)`` for one seed.

    Returns:
        One slope per seed, in units of y over units of x, shape ``(n,)``; give it to `interval`.

    Raises:
        DataError: Shapes that do not fit, a value that is not finite, or fewer than two different abscissae.
    """
    try:
        ordinate = np.atleast_2d(np.asarray(y, dtype=np.float64))
        abscissa = np.broadcast_to(np.asarray(x, dtype=np.float64), ordinate.shape)
    except (TypeError, ValueError):
        raise DataError("x and y do not fit: give x of shape (points,) or (n, points) and y of (n, points)") from None
    if ordinate.ndim != 2 or ordinate.size == 0:
        raise DataError(f"y has shape {np.shape(y)}; give a row of points for each seed")
    for name, values in (("x", abscissa), ("y", ordinate)):
        bad = ~np.isfinite(values)
        if bad.any():
            seeds = ", ".join(str(k) for k in np.flatnonzero(bad.any(axis=1))[:5])
            raise DataError(f"{bad.sum()} of {bad.size} values of {name} are not finite (rows {seeds}); leave them out")
    centred = abscissa - abscissa.mean(axis=1, keepdims=True)
    spread = (centred**2).sum(axis=1)
    if (np.ptp(abscissa, axis=1) == 0).any():
        raise DataError("a slope needs at least two different abscissae for every seed")
    slopes: Floats = (centred * (ordinate - ordinate.mean(axis=1, keepdims=True))).sum(axis=1) / spread
    return slopes


def proportional(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    r"""Fit a line through the origin by least squares.

    Args:
        x: Values (n,), not all zero.
        y: Values (n,).

    Returns:
        The slope, and $R^2 = 1 - \sum (y - bx)^2 / \sum (y - \bar y)^2$: negative where the mean fits better, NaN
        where all ``y`` are the same.

    Raises:
        DataError: Not one value of ``y`` for each of ``x``, a value that is not finite, or all ``x`` zero.
    """
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if xs.shape != ys.shape or xs.ndim != 1:
        raise DataError(f"x and y do not fit: got shapes {xs.shape} and {ys.shape}")
    if not np.isfinite([xs, ys]).all() or not np.any(xs):
        raise DataError("a line through the origin needs finite values, and an x that is not zero")
    slope = float(xs @ ys / (xs @ xs))
    left, total = float(np.square(ys - slope * xs).sum()), float(np.square(ys - ys.mean()).sum())
    return slope, 1 - left / total if total > 0 else float("nan")
