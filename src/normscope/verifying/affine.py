"""Find a gain, a bias and an activation around the core of a forward function, by moving its arguments.

A bias moves what is before the activation by as much as it is moved. A gain multiplies what is left without the bias.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from normscope.verifying.calls import Array, Calls
from normscope.verifying.groups import views
from normscope.verifying.samples import Point

SAME = 1e-9


@dataclass(frozen=True)
class Affine:
    """What stands around a core.

    Attributes:
        activation: ``""``, ``"relu"``, ``"tanh"`` or ``"sigmoid"``: applied last.
        bias: Place of the argument that is added; None if there is none.
        gain: Place of the argument that multiplies; None if there is none.
        plus_one: Whether 1 is added to the gain.
        view: The shape in which the gain expands to the output.
    """

    activation: str = ""
    bias: int | None = None
    gain: int | None = None
    plus_one: bool = False
    view: tuple[int, ...] = ()

    def before(self, calls: Calls, inputs: Sequence[Any]) -> Array:
        """Return what the forward function computes before its activation."""
        if self.activation == "relu":
            assert self.bias is not None
            high = 100 * (1 + float(np.abs(calls.output(inputs)).max()))
            lifted = [value + high if place == self.bias else value for place, value in enumerate(inputs)]
            return calls.output(lifted) - high
        output = calls.output(inputs)
        if self.activation == "tanh":
            return np.arctanh(output)
        return np.log(output / (1 - output)) if self.activation == "sigmoid" else output

    def slope(self, output: Array) -> Array:
        """Return the derivative of the activation, from its output."""
        if self.activation == "relu":
            return (output > 0).astype(float)
        if self.activation == "tanh":
            return 1 - output**2
        return output * (1 - output) if self.activation == "sigmoid" else np.ones_like(output)

    def core(self, calls: Calls, inputs: Sequence[Any]) -> Array:
        """Return the core: what is before the activation, with gain 1 and bias 0."""
        values = list(inputs)
        if self.bias is not None:
            values[self.bias] = np.zeros_like(values[self.bias])
        if self.gain is not None:
            values[self.gain] = np.ones_like(values[self.gain]) - self.plus_one
        return self.before(calls, values)

    def factor(self, inputs: Sequence[Any], shape: tuple[int, ...]) -> Array:
        """Return what multiplies the core."""
        if self.gain is None:
            return np.ones(shape)
        return np.broadcast_to(inputs[self.gain].reshape(self.view) + self.plus_one, shape)


def around(calls: Calls, point: Point, place: int) -> Iterator[Affine]:
    """Yield what may stand around a core, the simplest first.

    Args:
        calls: The user's functions.
        point: Inputs and output.
        place: The argument of the core.
    """
    shape = point.output.shape
    others = [at for at in calls.differentiable if at != place and views(point.inputs[at].shape, shape)]
    plain = Affine(bias=next((at for at in others if _is_bias(calls, point, Affine(bias=at))), None))
    yield _with_gain(calls, point, plain, others)
    for activation in ("relu", "tanh", "sigmoid"):
        if not _may_be(activation, point.output):
            continue
        for at in others:
            if _is_bias(calls, point, found := Affine(activation, at)):
                yield _with_gain(calls, point, found, others)


def _may_be(activation: str, output: Array) -> bool:
    low, high = float(output.min()), float(output.max())
    if activation == "relu":
        return low == 0 < high
    return -1 < low < high < 1 if activation == "tanh" else 0 < low < high < 1


def _is_bias(calls: Calls, point: Point, around: Affine) -> bool:
    """Return whether an argument moves what is before the activation by as much as it is moved itself."""
    assert around.bias is not None
    bias = point.inputs[around.bias]
    step = 0.1 * np.random.default_rng(0).standard_normal(bias.shape)
    moved = [value + step if place == around.bias else value for place, value in enumerate(point.inputs)]
    before = around.before(calls, point.inputs)
    scale = max(float(np.abs(before).max()), 1.0)
    if around.activation == "relu" and np.abs(np.maximum(before, 0) - point.output).max() > SAME * scale:
        return False
    after = around.before(calls, moved) - before
    gaps = [np.abs(after - step.reshape(view)).max() for view in views(step.shape, before.shape)]
    return any(gap <= SAME * scale for gap in gaps)  # not so where a gap is not finite


def _with_gain(calls: Calls, point: Point, around: Affine, others: Sequence[int]) -> Affine:
    """Return what stands around a core, with a gain if an argument is one."""
    chance = np.random.default_rng(0)
    fixed = list(point.inputs)
    if around.bias is not None:
        fixed[around.bias] = np.zeros_like(fixed[around.bias])

    def before(at: int, value: Array) -> Array:
        return around.before(calls, [value if place == at else each for place, each in enumerate(fixed)])

    for at in others:
        if at == around.bias:
            continue
        gain = point.inputs[at]
        factor = 1 + chance.random(gain.shape)
        one, scaled, zero, unit = (before(at, each) for each in (gain, factor * gain, 0 * gain, np.ones_like(gain)))
        scale = max(float(np.abs(one).max()), 1e-300)
        if not np.isfinite(zero).all() or np.abs(one - zero).max() <= SAME * scale:
            continue
        for view in views(gain.shape, one.shape):
            if np.abs((scaled - zero) - factor.reshape(view) * (one - zero)).max() > SAME * scale:
                continue
            if np.abs(zero).max() <= SAME * scale:
                return replace(around, gain=at, view=view)
            if np.abs(unit - 2 * zero).max() <= SAME * scale:
                return replace(around, gain=at, plus_one=True, view=view)
    return around
