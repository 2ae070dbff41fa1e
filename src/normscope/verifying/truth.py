"""True gradients of the user's forward function: automatic differentiation in torch, differences in NumPy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from normscope._errors import UsageError
from normscope.usercode import users_code
from normscope.verifying.calls import Array, Calls
from normscope.verifying.differences import along, complex_step, quietly, spread_of

#: Entries of NumPy arguments that are differentiated one by one.
MOST_ENTRIES = 10_000
#: Entries of an argument at which kinks of a function in torch are looked for one by one.
_MOST_LOOKED_AT = 2_000
_AGREES = 1e-5
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
        walk = _walk(calls, inputs, incoming, place)
        natural = height * max(float(np.linalg.norm(each)) for each in incoming) / spread_of(value)
        if found is not None:
            made[name] = _with_kinks(found[name], walk, value, natural, chance)
        else:
            made[name] = _numeric(walk, _complex_walk(calls, inputs, place), value, natural, incoming, chance)
    return made


def _walk(calls: Calls, inputs: Sequence[Any], incoming: Sequence[Array], place: int) -> Callable[[Array], Array]:
    """Return a function that moves one argument and gives the output times each incoming gradient."""
    stacked = np.stack([each.reshape(-1) for each in incoming])

    def walk(moved: Array) -> Array:
        values = [moved if other == place else value for other, value in enumerate(inputs)]
        with quietly():
            return stacked @ calls.output(values).reshape(-1)

    return walk


def _complex_walk(calls: Calls, inputs: Sequence[Any], place: int) -> Callable[[Array], Array]:
    return lambda moved: calls.output([moved if other == place else each for other, each in enumerate(inputs)])


def _directional(walk: Callable[[Array], Array], value: Array, direction: Array) -> tuple[Array, Array, bool]:
    made = along(lambda step: walk(value + step * direction), spread_of(value))
    return made.value, made.error, made.kink


# -- torch ------------------------------------------------------------------------------------------------------------


def _automatic(
    calls: Calls, inputs: Sequence[Any], incoming: Sequence[Array]
) -> dict[str, tuple[list[Array], list[float]]]:
    """Return gradients by automatic differentiation, and how far they move if the inputs move by their rounding."""
    with torch.enable_grad():
        first = _autograd(calls, inputs, incoming)
        sign = np.random.default_rng(0)
        moved = [
            value * (1 + _ROUNDING * sign.choice([-1.0, 1.0], value.shape)) if place in calls.differentiable else value
            for place, value in enumerate(inputs)
        ]
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
    found: tuple[list[Array], list[float]], walk: Callable[[Array], Array], value: Array, natural: float, chance: Any
) -> Truth:
    """Compare automatic gradients with differences in a direction, and look for kinks where they disagree."""
    values, moved = found
    smooth = np.ones(value.shape, bool)
    with quietly():
        direction = chance.standard_normal(value.shape)
        measured, error, kink = _directional(walk, value, direction)
        automatic = np.array([(each * direction).sum() for each in values])
        size = max(float(np.abs(measured[np.isfinite(measured)]).max(initial=0.0)), float(np.abs(automatic).max()))
        off = np.abs(measured - automatic) > _AGREES * size + 100 * error + ROUNDED * natural
        if not (kink or off.any()):
            return Truth(values, moved, smooth, natural)
        entries = list(np.ndindex(value.shape))
        if len(entries) > _MOST_LOOKED_AT:
            return Truth(values, moved, smooth, natural, "forward has a kink at these inputs or detaches a value")
        for index in entries:
            unit = np.zeros(value.shape)
            unit[index] = 1.0
            smooth[index] = not _directional(walk, value, unit)[2]
    if smooth.all():
        return Truth(
            values,
            moved,
            smooth,
            natural,
            "autograd's gradient is not the derivative of forward, which detaches a value; the formula was compared "
            "with autograd",
        )
    return Truth(values, moved, smooth, natural, _kinks(smooth))


# -- NumPy ------------------------------------------------------------------------------------------------------------


def _numeric(
    walk: Callable[[Array], Array],
    whole: Callable[[Array], Array],
    value: Array,
    natural: float,
    incoming: Sequence[Array],
    chance: Any,
) -> Truth:
    """Return gradients by differences, entry by entry."""
    stacked = np.stack([each.reshape(-1) for each in incoming])
    count = len(incoming)
    found, errors = np.zeros((count, *value.shape)), np.zeros((count, *value.shape))
    smooth = np.ones(value.shape, bool)
    entries = list(np.ndindex(value.shape))
    imaginary = _complex_works(walk, whole, stacked, value, chance)
    for index in entries:
        unit = np.zeros(value.shape)
        unit[index] = 1.0
        made = _directional(walk, value, unit) if not imaginary else None
        if made is None:
            exact = complex_step(whole, value, unit)
            assert exact is not None
            found[(slice(None), *index)] = stacked @ exact.reshape(-1)
            continue
        found[(slice(None), *index)], errors[(slice(None), *index)] = made[0], made[1]
        smooth[index] = not made[2] and bool(np.isfinite(made[1]).all())
    values = list(np.where(smooth, found, 0.0))
    off = [float(np.linalg.norm(np.where(smooth, each, 0.0))) for each in errors]
    return Truth(values, off, smooth, natural, "" if smooth.all() else _kinks(smooth))


def _complex_works(
    walk: Callable[[Array], Array], whole: Callable[[Array], Array], stacked: Array, value: Array, chance: Any
) -> bool:
    """Return whether complex steps give what differences give, in two directions that move every entry."""
    for _ in range(2):
        direction = chance.standard_normal(value.shape)
        exact = complex_step(whole, value, direction)
        if exact is None:
            return False
        measured, error, kink = _directional(walk, value, direction)
        size = float(np.abs(measured[np.isfinite(measured)]).max(initial=0.0))
        if kink or not (np.abs(stacked @ exact.reshape(-1) - measured) <= 100 * error + 1e-9 * size).all():
            return False
    return True


def _kinks(smooth: Array) -> str:
    at = [index.tolist() for index in np.argwhere(~smooth)[:3]]
    count = int((~smooth).sum())
    entries = "entry" if count == 1 else "entries"
    named = ", ".join(map(str, at)) + (", ..." if count > 3 else "")
    return f"forward is not smooth in {count} {entries} ({named}): left out of the comparison"
