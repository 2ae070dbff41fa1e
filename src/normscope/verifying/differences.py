"""Derivatives of a function of NumPy arrays: central differences, extrapolated, and complex steps where they work.

Source: Ridders (1982), Accurate computation of F'(x) and F'(x) F''(x): a tableau of Richardson extrapolations whose
entries say by their differences how good they are. Squire & Trapp (1998), Using complex variables to estimate
derivatives of real functions.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from normscope.verifying.calls import Array

#: Steps of the differences in units of the argument's spread: the largest, and how many halvings by four follow it.
_LARGEST_STEP = 2.0**-5
_STEPS = 6
_SHRINK = 4.0
#: A second difference over the step that does not shrink with the step, relative to the derivative: a kink.
_KINK = 1e-3
_TINY = 1e-30


class Derivative(NamedTuple):
    """Derivatives of several numbers in one direction, each with its own estimate of its error.

    Attributes:
        value: The derivatives.
        error: Estimated absolute errors; infinite where there is no derivative.
        kink: Whether the derivative from the left is another than from the right.
    """

    value: Array
    error: Array
    kink: bool


@contextmanager
def quietly() -> Iterator[None]:
    """Let floating-point errors and warnings pass: they are looked for in the numbers."""
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def spread_of(value: Array) -> float:
    """Return the scale on which an argument varies: its deviation, else its size, else 1."""
    deviation, size = float(value.std()), float(np.abs(value).max())
    return deviation if deviation > 1e-9 * size else size or 1.0


def scales_along(value: Array, direction: Array) -> list[float]:
    """Return the scales on which an argument varies in a direction, the largest first: columns may have other units.

    Args:
        value: The argument.
        direction: Of the same shape.
    """
    moving = direction != 0
    found = [spread_of(value)]
    for axis in range(value.ndim):
        lines = np.where(moving.any(axis), value.std(axis), 0.0)
        found.append(float(lines[lines > 0].min(initial=np.inf)))
    found.append(float(np.abs(value[moving & (value != 0)]).min(initial=np.inf)) if moving.sum() == 1 else np.inf)
    kept = sorted((each for each in found if 0 < each < np.inf), reverse=True)
    # A scale that is about as long as the one before tells nothing new.
    return [each for place, each in enumerate(kept) if not place or each < kept[place - 1] / _SHRINK]


def along(function: Callable[[float], Array], scale: float, noise: Array) -> Derivative:
    """Return the derivative at 0 of a function of a number (Ridders 1982).

    Args:
        function: Gives a vector; values that are not finite make a step unusable.
        scale: The scale on which the function varies.
        noise: Absolute rounding of each value; a difference is no better than this over the step.
    """
    middle = function(0.0)
    rows: list[list[Array]] = []
    best = np.full(middle.shape, np.nan)
    error = np.full(middle.shape, np.inf)
    bends: list[Array] = []
    for place in range(_STEPS):
        step = _LARGEST_STEP * scale / _SHRINK**place
        above, below = function(step), function(-step)
        if not (np.isfinite(above).all() and np.isfinite(below).all()):
            rows, bends = [], []
            continue
        bends.append(np.maximum(np.abs(above - 2 * middle + below) - 8 * noise, 0.0) / step)
        row = [(above - below) / (2 * step)]
        for order, earlier in enumerate(rows[-1] if rows else [], start=1):
            power = _SHRINK ** (2 * order)
            better = (power * row[-1] - earlier) / (power - 1)
            off = np.maximum(np.abs(better - row[-1]), np.abs(better - earlier)) + noise / step
            row.append(better)
            closer = off < error
            best, error = np.where(closer, better, best), np.where(closer, off, error)
        rows.append(row)
    size = float(np.abs(best[np.isfinite(best)]).max(initial=0.0))
    return Derivative(best, error, len(bends) > 2 and _has_kink(bends, size))


def _has_kink(bends: Sequence[Array], size: float) -> bool:
    """Return whether second differences over the step stay as the step shrinks, as at a kink."""
    large, small = bends[-3], bends[-2]
    return bool(((small > 0.5 * large) & (small > _KINK * max(size, _TINY))).any())


def complex_step(function: Callable[[Array], Array], at: Array, direction: Array) -> Array | None:
    """Return the derivative in a direction by a step in the imaginary direction; None if the function refuses it."""
    step = 1e-30 * spread_of(at)
    try:
        with quietly(), warnings.catch_warnings():
            warnings.simplefilter("error")
            found = function(at + 1j * step * direction)
    except Exception:
        return None
    return found.imag / step if np.iscomplexobj(found) and np.isfinite(found).all() else None
