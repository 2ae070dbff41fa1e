"""What every statistic asks of its numbers: one dimension, at least one value, all of them finite."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from normscope._errors import DataError, UsageError

Floats = NDArray[np.float64]


def as_values(values: ArrayLike, what: str = "values") -> Floats:
    """Return ``values`` as a float64 vector of one finite number per seed.

    Args:
        values: Numbers, shape ``(n,)`` or a scalar; integers and float32 are widened to float64.
        what: How a message names them.

    Raises:
        DataError: They are not numbers, not one-dimensional, none at all, or not all finite; the message says how many
            and which.
    """
    try:
        array: Any = np.atleast_1d(np.asarray(values, dtype=np.float64))
    except (TypeError, ValueError):
        raise DataError(f"{what} are not numbers; give one number per seed") from None
    if array.ndim != 1:
        raise DataError(f"{what} have shape {array.shape}; give one number per seed, shape (n,)")
    if array.size == 0:
        raise DataError(f"{what} are empty; an estimate needs at least one seed")
    refuse(~np.isfinite(array), array, what, "not finite", "leave those seeds out or censor() them first")
    return array


def as_positive(values: ArrayLike, what: str = "values") -> Floats:
    """Return ``values`` like `as_values`, and refuse what has no logarithm.

    Raises:
        DataError: As in `as_values`, or a value is zero or negative.
    """
    array = as_values(values, what)
    refuse(array <= 0, array, what, "not positive", 'compare them with scale="difference"')
    return array


def refuse(bad: NDArray[np.bool_], array: Floats, what: str, fault: str, remedy: str) -> None:
    """Raise a `DataError` that counts and shows the values marked in ``bad``, if any is."""
    where = np.flatnonzero(bad)
    if where.size:
        shown = ", ".join(f"{array[k]:g} at position {k}" for k in where[:5])
        more = ", ..." if where.size > 5 else ""
        raise DataError(f"{where.size} of {array.size} {what} are {fault} ({shown}{more}); {remedy}")


def check_level(level: float) -> float:
    """Return ``level`` if it lies in (0, 1).

    Raises:
        UsageError: It does not.
    """
    if not 0 < level < 1:
        raise UsageError(f"level is {level}; give a confidence level between 0 and 1, such as 0.95")
    return float(level)


def censor(values: ArrayLike, at: float) -> tuple[Floats, int]:
    """Replace values above ``at``, plus infinity among them, by ``at``.

    For quantities that a run may never reach (steps to an accuracy, the loss of a run that diverged). A mean of
    censored values is a restricted mean: it understates what lies beyond the horizon, so a comparison in which the
    control is censored more often is conservative for the claim that the control is worse.

    Args:
        values: Shape ``(n,)``; ``inf`` marks what never happened. NaN is left in place and refused later.
        at: The horizon, on the scale of the values.

    Returns:
        The censored values, and how many there were to censor.
    """
    array = np.atleast_1d(np.asarray(values, dtype=np.float64))
    beyond = array > at
    return np.where(beyond, at, array), int(beyond.sum())
