"""What the user's functions give: at the inputs, at inputs beside them, for random incoming gradients."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from normscope._errors import UsageError
from normscope.verifying.calls import Array, Calls
from normscope.verifying.differences import quietly, spread_of
from normscope.verifying.truth import Truth, gradients

#: Inputs beside the given inputs, incoming gradients at each, and how far the inputs are moved, in their spreads.
_BESIDE, _INCOMING = 2, 4
_MOVES = (0.3, 0.03, 0.003)


@dataclass(frozen=True)
class Point:
    """One set of inputs, and what comes out there.

    Attributes:
        inputs: The arguments.
        output: The output of the forward function.
        incoming: Random gradients at the output; the last is 1 everywhere.
        truths: True gradients of each differentiable argument, for each incoming gradient.
        results: What the formula gives for each incoming gradient, by argument.
    """

    inputs: tuple[Any, ...]
    output: Array
    incoming: list[Array]
    truths: dict[str, Truth]
    results: list[dict[str, Array | None]]


@dataclass(frozen=True)
class Sampled:
    """All points, the given inputs first.

    Attributes:
        calls: The user's functions.
        points: The points.
        linear: Whether the formula is linear in the incoming gradient.
        notes: Sentences on the sampling.
    """

    calls: Calls
    points: list[Point]
    linear: bool
    notes: list[str] = field(default_factory=list)


def sample(calls: Calls, seed: int) -> Sampled:
    """Call the user's functions at the inputs and beside them.

    Args:
        calls: The functions.
        seed: Of the incoming gradients and of the inputs beside those given.

    Raises:
        UsageError: A function cannot be used; the message says why.
    """
    chance = np.random.default_rng(seed)
    calls.require_untouched()
    first = calls.output(calls.inputs)
    _require_finite(first)
    _require_repeatable(calls, first)
    points = [_at(calls, calls.inputs, first, chance)]
    notes: list[str] = []
    for _ in range(_BESIDE):
        beside = _beside(calls, chance)
        if beside is None:
            notes.append("forward gives nothing finite beside the given inputs, so the formula was tried at these only")
            break
        points.append(_at(calls, *beside, chance))
    return Sampled(calls, points, _is_linear(calls, points[0]), notes)


def _at(calls: Calls, inputs: tuple[Any, ...], output: Array, chance: Any) -> Point:
    # Not centred at 0: the mean of an incoming gradient counts in some terms.
    incoming = [0.5 * chance.choice([-1, 1]) + chance.standard_normal(output.shape) for _ in range(_INCOMING)]
    incoming = [np.asarray(each) for each in incoming]
    truths = gradients(calls, inputs, [*incoming, np.ones(output.shape)], chance)
    results = [calls.results(each, inputs) for each in incoming]
    return Point(inputs, output, [*incoming, np.ones(output.shape)], truths, results)


def _require_finite(output: Array) -> None:
    bad = ~np.isfinite(output)
    if bad.any():
        raise UsageError(
            f"forward gives {int(bad.sum())} values that are not finite, first at {np.argwhere(bad)[0].tolist()}: "
            "give inputs at which it is finite"
        )
    if output.size == 0:
        raise UsageError(f"forward gives an output of the shape {output.shape}, without entries")


def _require_repeatable(calls: Calls, first: Array) -> None:
    if not np.array_equal(first, calls.output(calls.inputs)):
        raise UsageError(
            "forward gives another output when it is called again with the same inputs: switch off dropout and other "
            "random numbers in it, or seed them inside forward"
        )
    gradient = np.ones(first.shape)
    one, two = (calls.results(gradient, calls.inputs) for _ in range(2))
    if any(value is not None and not np.array_equal(value, two[name], equal_nan=True) for name, value in one.items()):  # type: ignore[arg-type]
        raise UsageError("backward gives another result when it is called again with the same arguments: seed it")
    if all(one[calls.names[place]] is None for place in calls.differentiable):
        raise UsageError("backward returned None for every argument: return a gradient for at least one of them")


def _is_linear(calls: Calls, point: Point) -> bool:
    """Return whether the formula gives the sum of results for a sum of incoming gradients."""
    one, two = point.results[0], point.results[1]
    both = calls.results(2 * point.incoming[0] - point.incoming[1], point.inputs)
    for place in calls.differentiable:
        name = calls.names[place]
        parts = one[name], two[name], both[name]
        if any(part is None for part in parts) or len({part.shape for part in parts if part is not None}) > 1:
            continue
        wanted = 2 * parts[0] - parts[1]  # type: ignore[operator]
        gap = np.abs(parts[2] - wanted)  # type: ignore[operator]
        if np.where(np.isfinite(gap), gap, 0.0).max() > 1e-6 * np.abs(np.where(np.isfinite(gap), wanted, 0.0)).max():
            return False
    return True


# -- inputs beside those that were given ------------------------------------------------------------------------------


def _beside(calls: Calls, chance: Any) -> tuple[tuple[Any, ...], Array] | None:
    for size in _MOVES:
        inputs = tuple(
            moved(value, size, chance) if place in calls.differentiable else value
            for place, value in enumerate(calls.inputs)
        )
        try:
            with quietly():
                output = calls.output(inputs)
        except UsageError:  # the forward function refuses such inputs
            continue
        if np.isfinite(output).all():
            return inputs, output
    return None


def moved(value: Array, size: float, chance: Any) -> Array:
    """Return random values beside an argument, with the properties that formulas rest on.

    Signs and zeros stay (an array of zeros does not stay: it may be a bias); so do masks, sums of 1 along an axis, and
    symmetry.

    Args:
        value: The argument.
        size: How far, relative to each value.
        chance: Generator of random numbers.
    """
    kinds = set(np.unique(value).tolist()) if value.size <= 1_000_000 else {0.5}
    if kinds == {0.0, 1.0}:
        return value.copy()
    noise = chance.standard_normal(value.shape)
    if value.ndim == 2 and value.shape[0] == value.shape[1] > 1 and np.array_equal(value, value.T):
        noise = (noise + noise.T) / 2
    if kinds == {0.0}:
        return size * noise * spread_of(value)
    found = value * np.exp(size * noise)
    axis = _axis_of_sums(value)
    return found if axis is None else found / found.sum(axis, keepdims=True)


def _axis_of_sums(value: Array) -> int | None:
    """Return the axis along which values are shares that sum to 1."""
    if (value < 0).any():
        return None
    shares = (axis for axis, size in enumerate(value.shape) if size > 1)
    return next((axis for axis in shares if np.allclose(value.sum(axis), 1.0, rtol=0, atol=1e-6)), None)


def names_without_gradient(calls: Calls) -> list[tuple[str, str]]:
    """Return arguments that have no gradient, each with the reason."""
    found = []
    for place, name in enumerate(calls.names):
        if place in calls.differentiable or not isinstance(calls.inputs[place], np.ndarray):
            continue
        found.append((name, f"it holds {calls.inputs[place].dtype} values, so it has no gradient: it is a constant"))
    return found
