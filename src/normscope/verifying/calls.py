"""The user's two functions as functions of NumPy arrays in float64, with their mistakes told in a line."""

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from normscope._errors import UsageError, shown
from normscope._unit import near
from normscope.usercode import users_code

Array: TypeAlias = np.ndarray[Any, Any]
#: Names of parameters of a backward function that get more than incoming gradient and inputs.
EXTRAS = ("output", "cache")


def is_array(value: object) -> bool:
    """Return whether a value is an array of NumPy or a tensor."""
    return isinstance(value, np.ndarray | np.generic | torch.Tensor)


def as_numpy(value: Any) -> Array:
    """Return an array or tensor as an array of NumPy."""
    if isinstance(value, torch.Tensor):
        found = value.detach().cpu()
        return (found.float() if found.dtype == torch.bfloat16 else found).numpy().copy()
    return np.array(value)


def is_real(value: object) -> bool:
    """Return whether a value is an array of floating-point numbers."""
    if isinstance(value, torch.Tensor):
        return value.is_floating_point()
    return isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "f"


class Calls:
    """The forward and backward function, called with copies of the inputs, in float64.

    Args:
        forward: The user's forward function.
        backward: The user's formula.
        inputs: The inputs as given.

    Raises:
        UsageError: The functions or inputs cannot be used; the message says why.
    """

    def __init__(self, forward: Callable[..., Any], backward: Callable[..., Any], inputs: Sequence[Any]) -> None:
        for what, function in (("forward", forward), ("backward", backward)):
            if not callable(function):
                raise UsageError(f"{what} is {shown(function)}: give a function")
        if not inputs:
            raise UsageError("there are no inputs: give the arguments of forward after the two functions")
        self.torch = any(isinstance(value, torch.Tensor) for value in inputs)
        if self.torch and any(isinstance(value, np.ndarray) for value in inputs):
            raise UsageError("some inputs are tensors and some are arrays of NumPy: give all as one kind")
        double = isinstance(forward, torch.nn.Module)
        self._forward = copy.deepcopy(forward).double() if double else forward  # type: ignore[attr-defined]
        self._backward = backward
        self._shape: tuple[int, ...] | None = None
        self.device = next((value.device for value in inputs if isinstance(value, torch.Tensor)), torch.device("cpu"))
        self.names = _names(forward, len(inputs))
        self.given = inputs
        self.inputs = tuple(self._read(name, value) for name, value in zip(self.names, inputs, strict=True))
        self.differentiable = [
            place for place, value in enumerate(inputs) if is_real(value) and self.inputs[place].size
        ]
        if not self.differentiable:
            raise UsageError(
                "no input is an array of floats, so there is no gradient: integers, booleans and plain numbers are "
                "constants; give an array of floats, such as np.array(3.0)"
            )
        self._extras, self._bare = self._wanted(backward)

    def _read(self, name: str, value: Any) -> Any:
        """Return a copy of an input: floats in float64, anything else as it is."""
        if not is_array(value):
            return value
        if isinstance(value, torch.Tensor) and (value.is_sparse or value.is_quantized):
            raise UsageError(f"{name} is a sparse or quantized tensor: give a dense tensor")
        found = as_numpy(value)
        if found.dtype.kind == "c":
            raise UsageError(f"{name} holds complex numbers: give real numbers")
        if found.dtype.kind not in "fiub":
            raise UsageError(f"{name} holds {found.dtype}: give an array of numbers")
        if not is_real(value):
            return found
        found = found.astype(np.float64)
        if not np.isfinite(found).all():
            at = np.argwhere(~np.isfinite(found))[0].tolist()
            raise UsageError(f"{name} holds a value that is not finite, first at {at}: give finite numbers")
        if found.size == 0:
            raise UsageError(f"{name} has the shape {found.shape}, so it is empty: give an array with entries")
        return found

    def _wanted(self, backward: Callable[..., Any]) -> tuple[list[str], bool]:
        """Return which extra arguments the formula wants, and whether it takes nothing beside them and the gradient."""
        try:
            parameters = list(inspect.signature(backward).parameters.values())
        except (TypeError, ValueError):
            return [], False
        extras = [each.name for each in parameters if each.name in EXTRAS and each.name not in self.names]
        others = [each for each in parameters[1:] if each.name not in extras and each.kind is not each.VAR_KEYWORD]
        return extras, bool(extras) and not others

    def given_to_user(self, value: Any) -> Any:
        """Return a fresh copy of a value as the user's functions get it."""
        if isinstance(value, np.generic):  # what arithmetic makes of an array without axes
            value = np.asarray(value)
        if not isinstance(value, np.ndarray):
            return copy.deepcopy(value) if not callable(value) else value
        return torch.tensor(value, device=self.device) if self.torch else value.copy()

    def raw(self, values: Sequence[Any]) -> tuple[Any, Any]:
        """Call the forward function and return its output as it comes, and its second result; None if there is none.

        Args:
            values: The arguments, as the user's function gets them.

        Raises:
            UsageError: It raises, or gives something else than an array.
        """
        with users_code(f"forward({', '.join(self.names)})"):
            try:
                with np.errstate(all="ignore"):  # values that are not finite are looked for in the output
                    found = self._forward(*values)
            except RuntimeError as error:
                if "dtype" in str(error) and self.torch:
                    raise UsageError(
                        f"forward mixes precisions ({' '.join(str(error).split())[:90]}): all inputs come in float64, "
                        "so let constants and modules inside forward be float64 too"
                    ) from error
                raise
        cache = None
        if isinstance(found, tuple | list) and len(found) == 2 and is_array(found[0]):
            found, cache = found
        if not isinstance(found, torch.Tensor if self.torch else np.ndarray | np.generic | float):
            raise UsageError(
                f"forward returned {shown(found)}: it must return one {'tensor' if self.torch else 'array'}, or a pair "
                "of it and a cache for backward"
            )
        if not isinstance(found, float) and found.dtype not in (torch.float64, np.float64, np.complex128):
            raise UsageError(
                f"forward returned {found.dtype} for inputs in float64: it must not turn numbers into another type"
            )
        return found, cache

    def output(self, inputs: Sequence[Any]) -> Array:
        """Return the output of the forward function.

        Raises:
            UsageError: It raises, or gives something else than an array.
        """
        with torch.no_grad():
            found = as_numpy(self.raw([self.given_to_user(value) for value in inputs])[0])
        self._shape = found.shape if self._shape is None else self._shape
        if found.shape != self._shape:
            raise UsageError(
                f"forward gives an output of the shape {self._shape} or {found.shape}, by the values of its inputs: "
                "its shape must not depend on them"
            )
        return found

    def require_untouched(self) -> None:
        """Refuse a forward function that changes its inputs.

        Raises:
            UsageError: It does.
        """
        values = [self.given_to_user(value) for value in self.inputs]
        with torch.no_grad():
            self.raw(values)
        for name, now, before in zip(self.names, values, self.inputs, strict=True):
            if isinstance(before, np.ndarray) and not np.array_equal(as_numpy(now), before, equal_nan=True):
                raise UsageError(f"forward changes its input {name} in place: let it work on a copy")

    def results(self, gradient: Array, inputs: Sequence[Any]) -> dict[str, Array | None]:
        """Return what the formula gives for an incoming gradient, by argument.

        Raises:
            UsageError: It raises, changes what it is given, or gives something that cannot be read.
        """
        values = [self.given_to_user(value) for value in inputs]
        incoming = self.given_to_user(gradient)
        more = {}
        if self._extras:
            with torch.no_grad():
                output, cache = self.raw([self.given_to_user(value) for value in inputs])
            if "cache" in self._extras and cache is None:
                raise UsageError("backward wants a cache, but forward returns the output alone: return output, cache")
            more = {name: {"output": output, "cache": cache}[name] for name in self._extras}
        with users_code("backward(g, ...)"):
            found = self._backward(incoming, *([] if self._bare else values), **more)
        for name, now, before in (
            ("g, the incoming gradient,", incoming, gradient),
            *((f"its input {name}", now, was) for name, now, was in zip(self.names, values, inputs, strict=True)),
        ):
            if isinstance(before, np.ndarray) and not np.array_equal(as_numpy(now), before, equal_nan=True):
                raise UsageError(f"backward changes {name} in place: let it work on a copy")
        return self._by_name(found)

    def _by_name(self, found: Any) -> dict[str, Array | None]:
        """Return results by argument, None where there is none."""
        wanted = [self.names[place] for place in self.differentiable]
        if isinstance(found, Mapping):
            for key in found:
                if key not in self.names:
                    raise UsageError(
                        f"backward returned a gradient for {shown(key)}: forward has no such argument; its arguments "
                        f"are {', '.join(self.names)} (near: {near(str(key), self.names)})"
                    )
            pairs = dict(found)
        elif isinstance(found, tuple | list) and not (len(wanted) == 1 and len(found) not in (1, len(self.names))):
            if len(found) == len(self.names):
                pairs = dict(zip(self.names, found, strict=True))
            elif len(found) == len(wanted):
                pairs = dict(zip(wanted, found, strict=True))
            else:
                raise UsageError(
                    f"backward returned {len(found)} results for the {len(wanted)} arguments {', '.join(wanted)}: "
                    "return a gradient for each in this order, with None for each that is not to be compared, or a dict"
                )
        elif len(wanted) == 1:
            pairs = {wanted[0]: found}
        else:
            raise UsageError(
                f"backward returned {_kind(found)} for the arguments {', '.join(wanted)}: return a tuple with a "
                "gradient for each in this order, or a dict by name"
            )
        return {name: _result(name, pairs.get(name)) for name in self.names}


def _result(name: str, value: Any) -> Array | None:
    if value is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = as_numpy(value)
    except Exception:
        raise UsageError(f"backward returned {_kind(value)} for {name}: return an array") from None
    if found.dtype.kind not in "fiu":
        raise UsageError(f"backward returned {found.dtype} for {name}: a gradient is an array of floats")
    if found.dtype.kind in "iu" and found.any():
        raise UsageError(f"backward returned integers ({found.dtype}) for {name}: a gradient is an array of floats")
    return found


def _kind(value: object) -> str:
    if is_array(value):
        return "one array"
    return "None" if value is None else f"an object of type {type(value).__name__}"


def _names(forward: Callable[..., Any], count: int) -> tuple[str, ...]:
    """Return the names of the arguments of a function, by its signature as far as it has names."""
    try:
        called = forward.forward if isinstance(forward, torch.nn.Module) else forward
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    takes_more = not parameters or any(each.kind is each.VAR_POSITIONAL for each in parameters)
    needed = sum(each.default is each.empty for each in positional)
    if count < needed or (count > len(positional) and not takes_more):
        listed = ", ".join(each.name for each in positional)
        raise UsageError(f"forward takes {len(positional)} arguments ({listed}), and {count} inputs were given")
    names = [each.name for each in positional[:count]]
    return tuple(names + [f"argument {place}" for place in range(len(names), count)])
