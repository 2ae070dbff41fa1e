"""True gradients of the user's forward function: automatic differentiation in torch, differences in NumPy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from normscope._errors import UsageError
from normscope.usercode import users_code
from normscope.verifying.calls import Array, Calls
from normscope.verifying.differences import Derivative, along, complex_step, quietly, scales_along, spread_of

#: Entries of NumPy arguments that are differentiated one by one.
MOST_ENTRIES = 10_000
#: Entries of an argument at which kinks of a function in torch are looked for one by one.
_MOST_LOOKED_AT = 2_000
_AGREES = 1e-5
_CLEAR = 1e-4  # of the largest derivative: an error up to this leaves a kink visible
#: Rounding relative to the natural size of a gradient.
ROUNDED = 1e-13
_ROUNDING = 2.0**-52


@dataclass(frozen=True)
class Truth:
    """True gradients of an argument.

    Attributes:
        values: One for each incoming gradient.
        errors: Estimated absolute error of each.
        smooth: Which entries have a derivative.
        natural: Length that a gradient would have if nothing cancelled, by the sizes of output, argument and incoming
            gradient: rounding is measured in it where the true gradient is zero.
        note: What is to be said of them; may be empty.
    """

    values: list[Array]
    errors: list[float]
    smooth: Array
    natural: float
    note: str = ""


def gradients(calls: Calls, inputs: Sequence[Any], incoming: Sequence[Array], chance: Any) -> dict[str, Truth]:
    """Return the true gradient of each differentiable argument, for several incoming gradients.

    Args:
        calls: The user's functions.
        inputs: The arguments.
        incoming: Gradients at the output.
        chance: Generator of random numbers.

    Raises:
        UsageError: The function cannot be differentiated.
    """
    found = _automatic(calls, inputs, incoming) if calls.torch else None
    made = {}
    height = float(np.abs(calls.output(inputs)).max())
    for place in calls.differentiable:
        name, value = calls.names[place], inputs[place]
        walk = _Walk(calls, inputs, incoming, place)
        natural = height * max(float(np.linalg.norm(each)) for each in incoming) / spread_of(value)
        if found is not None:
            made[name] = _with_kinks(found[name], walk, value, natural, chance)
        else:
            made[name] = _numeric(walk, value, natural, chance)
    return made


class _Walk:
    """The output of the forward function times each incoming gradient, as one argument moves.

    Args:
        calls: The user's functions.
        inputs: The arguments.
        incoming: Gradients at the output.
        place: The argument that moves.
    """

    def __init__(self, calls: Calls, inputs: Sequence[Any], incoming: Sequence[Array], place: int) -> None:
        self._calls, self._inputs, self._place = calls, inputs, place
        self.stacked = np.stack([each.reshape(-1) for each in incoming])
        here, beside = self.whole(inputs[place]), self.whole(rounded(inputs[place]))
        self.noise = np.abs(self.stacked) @ (np.abs(beside - here) + _ROUNDING * np.abs(here)).reshape(-1)
        self.noise = np.where(np.isfinite(self.noise), self.noise, 0.0)

    def whole(self, moved: Array) -> Array:
        """Return the output where the argument has another value."""
        with quietly():
            return self._calls.output([moved if at == self._place else each for at, each in enumerate(self._inputs)])

    def _weighted(self, moved: Array) -> Array:
        return np.asarray(self.stacked @ self.whole(moved).reshape(-1))

    def directional(self, value: Array, direction: Array) -> Derivative:
        """Return the derivatives in a direction, by steps on the largest scale on which forward looks smooth.

        On a scale that is too long for some column, which has other units, a smooth function looks as if it had a kink.
        """
        found: Derivative | None = None
        size = (
            0.0  # of the derivatives that were seen on any scale: where it is 0 on one, an error has nothing beside it
        )
        for scale in scales_along(value, direction):
            made = along(lambda step: self._weighted(value + step * direction), scale, self.noise)
            size = max(size, float(np.abs(made.value[np.isfinite(made.value)]).max(initial=0.0)))
            smooth = not made.kink and bool((made.error <= _CLEAR * size).all())
            found = made if found is None or smooth else found
            if smooth:
                break
        assert found is not None
        return found

    def exactly(self, value: Array, direction: Array) -> Array | None:
        """Return the derivatives in a direction by a complex step; None if the function refuses it."""
        found = complex_step(self.whole, value, direction)
        return None if found is None else self.stacked @ found.reshape(-1)


def rounded(value: Array) -> Array:
    """Return a value with each entry moved by its rounding."""
    return value * (1 + _ROUNDING * np.random.default_rng(0).choice([-1.0, 1.0], value.shape))


# -- torch ------------------------------------------------------------------------------------------------------------


def _automatic(
    calls: Calls, inputs: Sequence[Any], incoming: Sequence[Array]
) -> dict[str, tuple[list[Array], list[float]]]:
    """Return gradients by automatic differentiation, and how far they move if the inputs move by their rounding."""
    with torch.enable_grad():
        first = _autograd(calls, inputs, incoming)
        moved = [rounded(value) if place in calls.differentiable else value for place, value in enumerate(inputs)]
        second = _autograd(calls, moved, incoming)
    return {
        name: (values, [float(np.linalg.norm(one - two)) for one, two in zip(values, second[name], strict=True)])
        for name, values in first.items()
    }


def _autograd(calls: Calls, inputs: Sequence[Any], incoming: Sequence[Array]) -> dict[str, list[Array]]:
    values = [calls.given_to_user(value) for value in inputs]
    leaves = [values[place].requires_grad_() for place in calls.differentiable]
    output, _ = calls.raw(values)
    if not output.requires_grad:
        raise UsageError(
            "the output of forward does not depend on its inputs for torch's autograd: it detaches them, or reads "
            "parameters of a module instead of its arguments"
        )
    found: dict[str, list[Array]] = {calls.names[place]: [] for place in calls.differentiable}
    for gradient in incoming:
        with users_code("differentiating forward by autograd"):
            made = torch.autograd.grad(
                output, leaves, torch.as_tensor(gradient, device=output.device), retain_graph=True, allow_unused=True
            )
        for place, each in zip(calls.differentiable, made, strict=True):
            zero = np.zeros_like(inputs[place])
            found[calls.names[place]].append(zero if each is None else each.detach().cpu().numpy())
    return found


def _with_kinks(
    found: tuple[list[Array], list[float]], walk: _Walk, value: Array, natural: float, chance: Any
) -> Truth:
    """Compare automatic gradients with differences in a direction, and look for kinks where they disagree."""
    values, moved = found
    smooth = np.ones(value.shape, bool)
    if not all(np.isfinite(each).all() for each in values):
        smooth = np.all([np.isfinite(each) for each in values], axis=0)
        values = [np.where(smooth, each, 0.0) for each in values]
        count = int((~smooth).sum())
        return Truth(
            values, [0.0] * len(values), smooth, natural, f"autograd's gradient is not finite in {count} entries"
        )
    with quietly():
        direction = chance.standard_normal(value.shape)
        measured, error, kink = walk.directional(value, direction)
        automatic = np.array([(each * direction).sum() for each in values])
        size = max(float(np.abs(measured[np.isfinite(measured)]).max(initial=0.0)), float(np.abs(automatic).max()))
        off = np.abs(measured - automatic) > _AGREES * size + 100 * error + ROUNDED * natural
        if not (kink or off.any()):
            return Truth(values, moved, smooth, natural)
        entries = list(np.ndindex(value.shape))
        if len(entries) > _MOST_LOOKED_AT:
            return Truth(values, moved, smooth, natural, "forward has a kink at these inputs or detaches a value")
        for index in entries:
            smooth[index] = not walk.directional(value, _unit(value, index)).kink
    detached = (
        "autograd's gradient is not the derivative of forward, which detaches a value; the formula was compared with "
        "autograd"
    )
    return Truth(values, moved, smooth, natural, detached if smooth.all() else _kinks(smooth))


def _unit(value: Array, index: tuple[int, ...]) -> Array:
    unit = np.zeros(value.shape)
    unit[index] = 1.0
    return unit


# -- NumPy ------------------------------------------------------------------------------------------------------------


def _numeric(walk: _Walk, value: Array, natural: float, chance: Any) -> Truth:
    """Return gradients by differences, entry by entry."""
    count = len(walk.stacked)
    found, errors = np.zeros((count, *value.shape)), np.zeros((count, *value.shape))
    smooth = np.ones(value.shape, bool)
    moved = _moved_by_rounding(walk, value, chance)
    for index in np.ndindex(value.shape):
        at, unit = (slice(None), *index), _unit(value, index)
        exact = walk.exactly(value, unit) if moved is not None else None
        if exact is not None:
            found[at] = exact
            continue
        made = walk.directional(value, unit)
        found[at], errors[at] = made.value, made.error
        smooth[index] = not made.kink and bool(np.isfinite(made.value).all())
    values = list(np.where(smooth, found, 0.0))
    off = [float(np.linalg.norm(np.where(smooth, each, 0.0))) for each in errors]
    if moved is not None:
        off = [max(one, float(two)) for one, two in zip(off, moved, strict=True)]
    return Truth(values, off, smooth, natural, "" if smooth.all() else _kinks(smooth))


def _moved_by_rounding(walk: _Walk, value: Array, chance: Any) -> Array | None:
    """Return how far derivatives move if the argument moves by its rounding; None where complex steps do not work.

    Complex steps work if they give what differences give, in two directions that move every entry.
    """
    moved = np.zeros(len(walk.stacked))
    for _ in range(2):
        direction = chance.standard_normal(value.shape)
        exact, beside = (walk.exactly(each, direction) for each in (value, rounded(value)))
        if exact is None or beside is None:
            return None
        measured = walk.directional(value, direction)
        size = float(np.abs(measured.value[np.isfinite(measured.value)]).max(initial=0.0))
        if measured.kink or not (np.abs(exact - measured.value) <= 100 * measured.error + 1e-9 * size).all():
            return None
        moved = np.maximum(moved, np.abs(exact - beside))
    return moved


# -- both -------------------------------------------------------------------------------------------------------------


def _kinks(smooth: Array) -> str:
    at = [index.tolist() for index in np.argwhere(~smooth)[:3]]
    count = int((~smooth).sum())
    entries = "entry" if count == 1 else "entries"
    named = ", ".join(map(str, at)) + (", ..." if count > 3 else "")
    return f"forward is not smooth in {count} {entries} ({named}): left out of the comparison"
