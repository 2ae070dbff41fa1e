"""Axes of arrays, and groups of entries that are normalized together."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from normscope.verifying.calls import Array

_MOST_GROUPS_OF_CHANNELS = 16


@dataclass(frozen=True)
class Groups:
    """A partition of the entries of an array: it is viewed in a shape, and entries along some axes are a group.

    Attributes:
        shape: The shape in which the array is viewed.
        axes: The axes of the view along which a group runs.
        words: The groups in words.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    words: str

    @property
    def count(self) -> int:
        """Entries in a group."""
        return int(np.prod([self.shape[axis] for axis in self.axes]))

    def mean(self, value: Array) -> Array:
        """Return the mean over each group, at each entry."""
        viewed = value.reshape(self.shape)
        return np.broadcast_to(viewed.mean(self.axes, keepdims=True), self.shape).reshape(value.shape)


def partitions(shape: tuple[int, ...]) -> Iterator[Groups]:
    """Yield the ways to group the entries of an array, the largest groups first."""
    found = [Groups(shape, axes, axes_words(axes, len(shape))) for axes in subsets(len(shape))]
    for axis in {0, 1, len(shape) - 1} if len(shape) > 1 else ():
        size = shape[axis]
        for many in range(2, min(size, _MOST_GROUPS_OF_CHANNELS + 1)):
            if size % many:
                continue
            view = (*shape[:axis], many, size // many, *shape[axis + 1 :])
            inner = axis + 1
            rest = tuple(range(inner + 1, len(view)))
            runs = dict.fromkeys(((inner,), (inner, *rest), (inner, *rest[1:]), *([(0, inner, *rest)] if axis else [])))
            words = f"each of {many} groups along axis {axis}"
            found += [Groups(view, axes, words) for axes in runs]
    yield from sorted((each for each in found if each.count > 1), key=lambda each: -each.count)


def subsets(count: int) -> list[tuple[int, ...]]:
    """Return the subsets of axes that are not empty."""
    return [each for size in range(1, count + 1) for each in itertools.combinations(range(count), size)]


def axes_words(axes: tuple[int, ...], count: int) -> str:
    """Return axes in words."""
    if len(axes) == count and count > 1:
        return "all axes"
    return f"axis {axes[0]}" if len(axes) == 1 else f"axes {', '.join(map(str, axes))}"


def expands(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    """Return whether an array of a shape expands to another shape."""
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def views(shape: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes in which an argument expands to a target.

    As NumPy expands it; and a value a channel, on the second axis of more than two, or a value a row, on the first.
    """
    found = [(1,) * (len(target) - len(shape)) + shape] if expands(shape, target) else []
    if len(shape) == 1:
        axes = [axis for axis in (1, 0) if axis < len(target) - 1 and target[axis] == shape[0]]
        found += [(1,) * axis + shape + (1,) * (len(target) - 1 - axis) for axis in axes]
    return found


def summed_axes(shape: tuple[int, ...], output: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the axes over which the gradient of an expanded argument is summed; None where it does not expand."""
    for view in views(shape, output):
        return tuple(axis for axis, (one, many) in enumerate(zip(view, output, strict=True)) if one != many)
    return None


def kept_shape(shape: tuple[int, ...], output: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the output's shape with an axis of 1 for each axis of an argument that is summed; None if none is."""
    if shape == output:
        return None
    if output == ():
        return (1,) * len(shape)
    for axes in subsets(len(shape)):
        kept = tuple(1 if axis in axes else size for axis, size in enumerate(shape))
        if output in (tuple(size for axis, size in enumerate(shape) if axis not in axes), kept):
            return kept
    return None
