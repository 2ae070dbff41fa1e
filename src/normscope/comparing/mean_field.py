r"""Squared gradients through wide layers with random weights and ReLU, position by position: mean field.

The quantity is the square of the gradient at a layer's output, summed over the width and averaged over samples and
weights, as a map over the positions of a sample. Through a convolution with weights of mean square v and n inputs of a
unit, spread over k taps, each position of the input gets $n v / k$ times the sum of the map over the taps. Taps
that reach into the padding are lost. ReLU passes half. Batch norm divides by the variance of its input over samples and
positions, which the moments of the layer's input give: the mean square at each position, and the covariance over
channels of the means over samples, which padding makes uneven (Xiao et al. 2018, arXiv:1806.05393; Yang et al. 2019).
Far from padding a layer without norm makes $n v / 2$ of the square, and a layer with batch norm
$\pi/(\pi-1)$.
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np

from normscope.studies.evidence import Floats

#: Positions along an axis that are computed with at most: the share of the padding falls as one over their number.
MOST = 12


class Taps(NamedTuple):
    """The taps of a layer that keeps the number of positions; a linear layer has one.

    Attributes:
        kernel: Taps along both axes, odd numbers.
        dilation: Positions from tap to tap.
    """

    kernel: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)


class Grid(NamedTuple):
    """Positions of a sample along both axes."""

    rows: int = 1
    columns: int = 1

    def computed(self) -> "Grid":
        """Return the positions that are computed with."""
        return Grid(min(self.rows, MOST), min(self.columns, MOST))

    def share(self) -> float:
        """Return by how much less the padding matters than among the positions that are computed with."""
        few = self.computed()
        return (1 / self.rows + 1 / self.columns) / (1 / few.rows + 1 / few.columns)


def through(square: Floats, taps: Taps) -> Floats:
    """Return the squares (rows, columns) at a layer's input by those at its output, for weights whose n v is 1."""
    return _summed(square, taps) / math.prod(taps.kernel)


def resized(square: Floats, grid: Grid) -> Floats:
    """Return a map on another grid, as pooling hands gradients back: each position's to all of its window."""
    rows, columns = (np.arange(new) * old // new for new, old in zip(grid, square.shape, strict=True))
    return square[np.ix_(rows, columns)]


@functools.lru_cache(maxsize=64)  # the arms and seeds of a comparison ask for the same
def inverse_variances(layers: tuple[Taps, ...], grid: Grid, share: float = 1 / math.pi) -> tuple[float, ...]:
    """Return the mean over channels of one over the variance of each layer's output, for weights whose n v is 1.

    Args:
        layers: The layers of a chain with batch norm and ReLU, from the input on.
        grid: The positions that are computed with.
        share: Of the mean square of the first layer's input, what is due to the means over samples; of a ReLU of
            normal values it is 1 / pi. All positions of that input count as alike.
    """
    square, means = np.full(grid, 0.5), np.full((*grid, *grid), share / 2)
    found = []
    for taps in layers:
        count = math.prod(taps.kernel)
        square, means = _summed(square, taps) / count, _summed(means, taps) / count
        by_position = means.mean((2, 3))
        common = by_position.mean()
        variance = square.mean() - common
        square = (square - 2 * by_position + common) / variance
        means = (means - by_position[:, :, None, None] - by_position[None, None] + common) / variance
        # The part that is due to means is another in each channel: its variance is twice their mean squared covariance.
        found.append(float((1 + 2 * np.square(means).mean()) / variance))
        square, means = square / 2, _rectified(square, means)
    return tuple(found)


def _rectified(square: Floats, covariance: Floats) -> Floats:
    """Return the mean product of two rectified normal values of these variances and covariances (Cho and Saul 2009)."""
    sizes = np.sqrt(square[:, :, None, None] * square[None, None])
    cosine = np.clip(covariance / sizes, -1.0, 1.0)
    found = sizes * (np.sqrt(1 - cosine**2) + (math.pi - np.arccos(cosine)) * cosine) / (2 * math.pi)
    return np.asarray(found)


def _summed(values: Floats, taps: Taps) -> Floats:
    """Sum a map, or a map for each pair of positions, over the taps, with nought in the padding."""
    pairs = values.ndim // 2
    reach = [dilation * (kernel // 2) for kernel, dilation in zip(*taps, strict=True)]
    padded = np.pad(values, [(width, width) for width in reach] * pairs)
    total = np.zeros_like(values)
    starts = itertools.product(*(range(0, k * d, d) for k, d in zip(*taps, strict=True)))
    for start in starts:
        window = [slice(first, first + size) for first, size in zip(start * pairs, values.shape, strict=True)]
        total += padded[tuple(window)]
    return total
