"""Vectors of all that was sampled for one argument, and fits of them that close to rounding."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normscope.verifying.calls import Array
from normscope.verifying.recognise import Core, Parts
from normscope.verifying.samples import Sampled

#: Entries of a sample that are looked at.
_MOST_ENTRIES = 400
_FIT_ROUNDING = 1e-9
_MOST_COMBINATIONS = 200_000


@dataclass(frozen=True)
class Sample:
    """One set of inputs with one incoming gradient.

    Attributes:
        inputs: Arrays among the arguments, by name, in float64: masks are 0 and 1.
        labels: Those of them that hold whole numbers, by name.
        output: The output of the forward function.
        incoming: The gradient at the output.
        truths: True gradients by argument.
        results: What the formula gives, by argument.
        parts: Parts of the recognised core; None where nothing was recognised.
    """

    inputs: Mapping[str, Array]
    labels: Mapping[str, Array]
    output: Array
    incoming: Array
    truths: Mapping[str, Array]
    results: Mapping[str, Array | None]
    parts: Parts | None


def samples_of(sampled: Sampled, known: tuple[Core, list[Parts]] | None) -> list[Sample]:
    """Return every pair of inputs and incoming gradient."""
    found = []
    for number, point in enumerate(sampled.points):
        given = {
            name: np.asarray(value)
            for name, value in zip(sampled.calls.names, point.inputs, strict=True)
            if isinstance(value, np.ndarray | float | int) and not isinstance(value, bool)
        }
        arrays = {name: value.astype(np.float64) for name, value in given.items() if value.dtype.kind in "biuf"}
        labels = {name: value for name, value in given.items() if value.dtype.kind in "iu"}
        for place, result in enumerate(point.results):
            truths = {name: truth.values[place] for name, truth in point.truths.items()}
            parts = None if known is None else known[1][number]
            found.append(Sample(arrays, labels, point.output, point.incoming[place], truths, result, parts))
    return found


class Rows:
    """Picks entries of arrays, one array a sample, into a vector, each sample in units of its true gradient.

    Args:
        sampled: What was sampled.
        name: The argument.
        tolerance: Relative size of rounding.
    """

    def __init__(self, sampled: Sampled, name: str, tolerance: float) -> None:
        chance = np.random.default_rng(0)
        self._picked, self._scales = [], []
        for point in sampled.points:
            truth = point.truths[name]
            smooth = np.flatnonzero(truth.smooth.reshape(-1))
            if len(smooth) > _MOST_ENTRIES:
                smooth = chance.choice(smooth, _MOST_ENTRIES, replace=False)
            for place in range(len(point.results)):
                size = float(np.linalg.norm(truth.values[place]))
                self._picked.append(smooth)
                self._scales.append(1 / size if size > 1e-9 * truth.natural else 1 / max(truth.natural, 1e-300))
        self.shape = sampled.points[0].truths[name].smooth.shape
        self.rounding = max(_FIT_ROUNDING, 10 * tolerance)

    def vector(self, arrays: Sequence[Array]) -> Array:
        """Return the picked entries of arrays of the argument's shape, or of shapes that expand to it."""
        picked = [
            scale * np.broadcast_to(each, self.shape).reshape(-1)[at]
            for each, at, scale in zip(arrays, self._picked, self._scales, strict=True)
        ]
        return np.concatenate(picked)

    def closes(self, rest: Array, gap: Array, truth: Array) -> bool:
        """Return whether what a fit leaves is rounding, beside the gap that it explains."""
        left = float(np.linalg.norm(rest))
        return left <= self.rounding * float(np.linalg.norm(truth)) and left <= 0.02 * float(np.linalg.norm(gap))


def coefficients(columns: Sequence[Array], wanted: Array) -> tuple[Array, Array]:
    """Return the coefficients of the best fit of a vector by columns, and what is left."""
    sizes = np.array([max(float(np.linalg.norm(each)), 1e-300) for each in columns])
    design = np.stack(columns, 1) / sizes
    found, *_ = np.linalg.lstsq(design, wanted, rcond=1e-13)
    return found / sizes, wanted - design @ found


def promising(choices: Sequence[Sequence[Array]], wanted: Array, keep: int = 60) -> list[tuple[int, ...]]:
    """Return the combinations of a column from each list that come nearest to a vector, nearest first.

    Args:
        choices: Lists of columns; a combination takes one of each.
        wanted: The vector.
        keep: Combinations that are returned at most.
    """
    flat = [column for columns in choices for column in columns]
    sizes = np.array([max(float(np.linalg.norm(column)), 1e-300) for column in flat])
    design = np.stack(flat, 1) / sizes
    gram, aim = design.T @ design, design.T @ wanted
    starts = np.cumsum([0, *(len(columns) for columns in choices[:-1])])
    combos = np.array(list(itertools.islice(itertools.product(*map(range, map(len, choices))), _MOST_COMBINATIONS)))
    places = combos + starts
    small = gram[places[:, :, None], places[:, None, :]] + 1e-13 * np.eye(len(choices))
    right = aim[places]
    solved = np.linalg.solve(small, right[..., None])[..., 0]
    left = wanted @ wanted - (solved * right).sum(1)
    order = np.argsort(left, kind="stable")[:keep]
    return [tuple(int(number) for number in combos[place]) for place in order]
