"""Results of another shape than the argument: a missing sum, a sum too many, a transposition."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from normscope.verifying.calls import Array
from normscope.verifying.groups import axes_words, subsets, summed_axes


class Change(NamedTuple):
    """A change that gives a result the shape of the argument.

    Attributes:
        words: What was wrong with the shape, as the end of a sentence.
        make: Gives the result its right shape.
    """

    words: str
    make: Callable[[Array], Array]


def changes(shape: tuple[int, ...], wanted: tuple[int, ...], output: tuple[int, ...]) -> Iterator[Change]:
    """Yield the changes that turn one shape into another, the likeliest first.

    Args:
        shape: Shape of the result.
        wanted: Shape of the argument.
        output: Shape of the output, whose first axis is the batch.
    """
    squeezed = tuple(size for size in shape if size != 1)
    if squeezed == tuple(size for size in wanted if size != 1):
        words = f"has the shape {shape} where it should have {wanted}"
        yield Change(words, lambda value: value.reshape(wanted))
    for axes in _sums(shape, wanted):
        batch = ", the batch" if axes == (0,) else ""
        where = batch if shape == output else f" of its shape {shape}"
        words = f"lacks the sum over {axes_words(axes, len(shape) + 1)}{where}"
        yield Change(words, lambda value, axes=axes: value.sum(axes).reshape(wanted))  # type: ignore[misc]
    if len(shape) == len(wanted):
        for order in itertools.permutations(range(len(shape))):
            if order != tuple(range(len(shape))) and tuple(shape[axis] for axis in order) == wanted:
                words = "is transposed" if len(shape) == 2 else f"has its axes in another order: transpose by {order}"
                yield Change(words, lambda value, order=order: value.transpose(order))  # type: ignore[misc]
    if int(np.prod(shape)) == int(np.prod(wanted)) and squeezed != tuple(size for size in wanted if size != 1):
        words = f"has the shape {shape} where it should have {wanted}: a reshape is missing"
        yield Change(words, lambda value: value.reshape(wanted))


def _sums(shape: tuple[int, ...], wanted: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the axes whose sum gives the wanted shape, but for axes of length 1."""
    bare = tuple(size for size in wanted if size != 1)
    for count in range(1, len(shape) + 1):
        for axes in itertools.combinations(range(len(shape)), count):
            if all(shape[axis] == 1 for axis in axes):
                continue
            left = tuple(size for axis, size in enumerate(shape) if axis not in axes and size != 1)
            if left == bare:
                yield axes


def summed_too_far(results: Sequence[Array], truths: Sequence[Array]) -> str:
    """Return the axes over which a result sums though it should not, in words; empty if it is no such result."""
    wanted, shape = truths[0].shape, results[0].shape
    for count in range(1, len(wanted) + 1):
        for axes in itertools.combinations(range(len(wanted)), count):
            for keep in (False, True):
                sums = [truth.sum(axes, keepdims=keep) for truth in truths]
                if sums[0].shape != shape:
                    continue
                size = max(float(np.abs(each).max()) for each in truths)
                gap = max(float(np.abs(one - two).max()) for one, two in zip(results, sums, strict=True))
                if gap <= 1e-7 * size:
                    return f"is summed over {axes_words(axes, len(wanted))}, which the argument has"
    return ""


def summed_elsewhere(
    results: Sequence[Array], truths: Sequence[Array], incoming: Sequence[Array], parts: Sequence[Sequence[Array]]
) -> str:
    """Return over which other axes than the right ones a result sums, in words; empty if it is no such result.

    Args:
        results: The results.
        truths: The true gradients.
        incoming: The gradients at the output.
        parts: Factors that the gradient may have, each of the output's shape.
    """
    output = incoming[0].shape
    right = summed_axes(truths[0].shape, output)
    if right is None:
        return ""
    for part in parts:
        products = [one * two for one, two in zip(part, incoming, strict=True)]
        if not _are(
            [each.sum(right).reshape(truth.shape) for each, truth in zip(products, truths, strict=True)], truths
        ):
            continue
        for axes in subsets(len(output)):
            sums = [each.sum(axes) for each in products]
            if axes == right or sums[0].size != results[0].size:
                continue
            if _are([each.reshape(results[0].shape) for each in sums], results):
                count = len(output)
                return f"is summed over {axes_words(axes, count)} where it should be {axes_words(right, count)}"
    return ""


def _are(found: Sequence[Array], wanted: Sequence[Array]) -> bool:
    size = max(float(np.abs(each).max()) for each in wanted)
    return max(float(np.abs(one - two).max()) for one, two in zip(found, wanted, strict=True)) <= 1e-7 * size


def orders(count: int) -> list[tuple[int, ...]]:
    """Return the orders of axes other than that in which they are."""
    return [each for each in itertools.permutations(range(count)) if each != tuple(range(count))]
