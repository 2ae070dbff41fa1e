"""What one side of a contrast is, and which pairs of runs say nothing, or only bound an effect."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from normscope.studies.evidence import Arrivals, Floats

Mask = NDArray[np.bool_]


class Sample(NamedTuple):
    """What one side of a contrast is.

    Attributes:
        where: Arm and point, own best values filled in; empty for a number.
        values: A number a seed (n,), a number that stands for a theory, or None for nothing.
        arrivals: The censored times, if the quantity is one.
    """

    where: Mapping[str, Any]
    values: Floats | float | None
    arrivals: Arrivals | None

    @property
    def never(self) -> int:
        """How many runs never got there."""
        return 0 if self.arrivals is None else int(self.arrivals.missed.sum())


def neither_arrived(first: Sample, second: Sample, seeds: int) -> Mask:
    """Return which seeds (n,) reached the target on neither side: such a pair says nothing."""
    missed = _missed(first, second)
    return np.logical_and.reduce(missed) if missed else np.zeros(seeds, dtype=bool)


def one_arrived(first: Sample, second: Sample, seeds: int) -> Mask:
    """Return which seeds (n,) missed the target on one side alone: their effect is a bound, not a number."""
    missed = _missed(first, second)
    found: Mask = np.logical_or.reduce(missed) if missed else np.zeros(seeds, dtype=bool)
    return found & ~neither_arrived(first, second, seeds)


def both_at_limits(first: Sample, second: Sample, seeds: int, limits: tuple[float, float]) -> Mask:
    """Return which seeds (n,) have both sides on the floor of the quantity, or both on its ceiling.

    Args:
        first: One side.
        second: The other; a contrast with a number has no such pairs.
        seeds: How many there are.
        limits: Floor and ceiling.
    """
    sides = [sample.values for sample in (first, second) if isinstance(sample.values, np.ndarray)]
    if len(sides) < 2 or not all(side.shape == (seeds,) for side in sides):
        return np.zeros(seeds, dtype=bool)
    floor, ceiling = limits
    low, high = ([side <= floor for side in sides], [side >= ceiling for side in sides])
    return np.asarray(np.logical_and.reduce(low) | np.logical_and.reduce(high))


def _missed(first: Sample, second: Sample) -> list[Mask]:
    return [sample.arrivals.missed for sample in (first, second) if sample.arrivals is not None]
