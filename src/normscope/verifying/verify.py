"""Verify a gradient formula against the true gradient of the forward function."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from normscope._errors import UsageError, shown
from normscope.verifying.calls import Calls, is_array, is_real
from normscope.verifying.explain import Explainer
from normscope.verifying.result import Checked, Verification
from normscope.verifying.samples import Point, Sampled, names_without_gradient, sample
from normscope.verifying.truth import MOST_ENTRIES, ROUNDED

#: Relative errors up to these are rounding: of gradients in float64, by differences, of results in lower precision.
_AUTOMATIC, _DIFFERENCES = 1e-9, 1e-8
_LOW = {2: 1e-2, 4: 1e-5}
_ESTIMATES = 20.0
UNKNOWN = "no known term explains it"


def verify(forward: Callable[..., Any], backward: Callable[..., Any], *inputs: Any, seed: int = 0) -> Verification:
    """Verify a gradient formula: per argument, whether it is right, by how much it is off, and what is wrong with it.

    The formula is tried with several random incoming gradients, at the inputs and at two random inputs beside them,
    all in float64. So a formula is not called right because a gain happens to be 1 or a bias 0. The true gradient comes
    from torch's autograd for tensors, and from extrapolated central differences or complex steps for arrays of NumPy
    (Ridders 1982; Squire & Trapp 1998).

    A wrong gradient is explained by what is known of gradients: a missing sum over the batch, a sign, a double, 1/m
    against 1/(m-1), a transposition, an argument missing or doubled as a factor; for normalizations and softmax the
    terms of their gradient (rescale, mean coupling, variance coupling), and eps. An explanation is given only if it
    accounts for the whole error, to rounding.

    Args:
        forward: A function of the inputs that returns one array or tensor, or a pair of it and a cache for
            ``backward``. A torch module is copied and computes in float64.
        backward: The formula: ``backward(g, *inputs)`` with the incoming gradient ``g``, of the shape of the output.
            A parameter called ``output`` gets the output of ``forward``, a parameter called ``cache`` its second
            result; ``backward(g, cache)`` gets no inputs. It returns a gradient for each input, as a tuple or list in
            the order of the inputs, or as a dict by the names of the arguments of ``forward``; None leaves an argument
            out. With one input the gradient alone is enough. Constants may be left out of the tuple.
        inputs: The arguments of ``forward``: tensors, or arrays of NumPy with 10,000 entries together at most. Arrays
            of integers and booleans, plain numbers and other objects are constants.
        seed: Of the random incoming gradients and of the inputs beside those that are given.

    Returns:
        The verdict on each argument.

    Raises:
        UsageError: A function raises, changes its inputs in place, is not the same when called again, or gives values
            that are not finite; inputs or results cannot be used. The message says which and what to do.

    Example:
        >>> import numpy as np
        >>> def forward(z):
        ...     return (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
        >>> def backward(g, z):
        ...     return g / np.sqrt(z.var(0) + 1e-5)
        >>> found = verify(forward, backward, np.random.default_rng(0).normal(size=(8, 3)))
        >>> found.ok
        False
        >>> "the mean coupling" in found["z"].explanation
        True
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise UsageError(f"seed is {shown(seed)}: give an integer from 0 on")
    return _verified(Calls(forward, backward, inputs), seed)


def _verified(calls: Calls, seed: int) -> Verification:
    entries = sum(calls.inputs[place].size for place in calls.differentiable)
    if not calls.torch and entries > MOST_ENTRIES:
        raise UsageError(
            f"the inputs have {entries:,} entries, and each takes many calls of forward: give smaller arrays, "
            f"{MOST_ENTRIES:,} entries at most, or tensors of torch"
        )
    with np.errstate(all="ignore"):
        sampled = sample(calls, seed)
        explainer = Explainer(sampled)
        checked = [_checked(sampled, explainer, place) for place in calls.differentiable]
    checked += [Checked(name, None, explanation=why) for name, why in names_without_gradient(calls)]
    order = {name: place for place, name in enumerate(calls.names)}
    if all(each.ok is None for each in checked):
        raise UsageError(
            "nothing could be compared: " + "; ".join(f"{each.name}: {each.explanation}" for each in checked)
        )
    truth = "autograd in float64" if calls.torch else "differences of forward in float64"
    return Verification(tuple(sorted(checked, key=lambda each: order[each.name])), tuple(_notes(sampled)), truth, seed)


def _notes(sampled: Sampled) -> list[str]:
    calls = sampled.calls
    notes = list(sampled.notes)
    low = [
        f"{name} ({str(value.dtype).removeprefix('torch.')})"
        for name, value in zip(calls.names, calls.given, strict=True)
        if is_array(value) and is_real(value) and value.dtype not in (torch.float64, np.float64)
    ]
    if low:
        notes.append(f"all was computed in float64, where the inputs are not: {', '.join(low)}")
    for name, result in sampled.points[0].results[0].items():
        if result is not None and result.dtype.kind == "f" and (low_bound := _LOW.get(result.dtype.itemsize)):
            notes.append(f"{name}: the formula gives {result.dtype}, so errors up to {low_bound:g} count as rounding")
    seen = [f"{name}: {truth.note}" for name, truth in sampled.points[0].truths.items() if truth.note]
    unused = [name for name in sampled.points[0].truths if _is_unused(sampled, name)]
    seen += [
        f"{name}: forward does not depend on it, so its gradient is zero"
        + (" (forward may read a module's parameter in its place)" if isinstance(value, torch.nn.Parameter) else "")
        for name, value in zip(calls.names, calls.given, strict=True)
        if name in unused
    ]
    if not sampled.linear:
        notes.append("the formula is not linear in the incoming gradient g: each term must have g as a factor once")
    return [*notes, *seen]


def _is_unused(sampled: Sampled, name: str) -> bool:
    return not any(value.any() for point in sampled.points for value in point.truths[name].values)


def _checked(sampled: Sampled, explainer: Explainer, place: int) -> Checked:
    """Return the verdict on one argument."""
    calls = sampled.calls
    name = calls.names[place]
    first = sampled.points[0].truths[name]
    expected = first.smooth.shape
    results = [result[name] for point in sampled.points for result in point.results]
    given = [result for result in results if result is not None]
    if not given:
        return Checked(name, None, expected=expected, explanation="the formula gives no gradient for it")
    if len(given) < len(results) or len({result.shape for result in given}) > 1:
        raise UsageError(
            f"backward returns another kind of result for {name} from call to call: let it be of one shape"
        )
    if not first.smooth.any():
        return Checked(name, None, expected=expected, explanation="forward is smooth in none of its entries")
    shape = given[0].shape
    base = _AUTOMATIC if calls.torch else _DIFFERENCES
    base = max(base, _LOW.get(given[0].dtype.itemsize, 0.0) if given[0].dtype.kind == "f" else 0.0)
    if shape != expected:
        found = explainer.explain(name, base)
        words = f"the result has the shape {shape} where it should have {expected}; {UNKNOWN}"
        return Checked(
            name, False, shape=shape, expected=expected, explanation=words if found is None else found.words,
            known=found is not None,
        )  # fmt: skip
    at = _not_finite(sampled, name)
    if at is not None:
        return Checked(
            name, False, math.inf, base, at, shape, expected, "the result holds values that are not finite", known=False
        )
    return _compared(sampled, explainer, name, base)


def _not_finite(sampled: Sampled, name: str) -> tuple[int, ...] | None:
    """Return the first entry in which a result is not finite though there is a gradient; None if there is none."""
    for point in sampled.points:
        for results in point.results:
            bad = ~np.isfinite(results[name]) & point.truths[name].smooth  # type: ignore[arg-type]
            if bad.any():
                return tuple(int(each) for each in np.argwhere(bad)[0])
    return None


def _compared(sampled: Sampled, explainer: Explainer, name: str, base: float) -> Checked:
    """Return the verdict on results of the right shape."""
    found = [_error(point, name, base) for point in sampled.points]
    wrong = [error > allowed for error, allowed, _ in found]
    shape = sampled.points[0].truths[name].smooth.shape
    error, _, where = max(found, key=lambda each: each[0] / each[1])
    tolerance = max(allowed for _, allowed, _ in found)
    if not any(wrong):
        return Checked(name, True, error, tolerance, where or None, shape, shape)
    explained = explainer.explain(name, tolerance)
    words = UNKNOWN if explained is None else explained.words
    if not wrong[0]:
        words = f"right at the given inputs only, wrong beside them: {words}"
    return Checked(name, False, error, tolerance, where or None, shape, shape, words, known=explained is not None)


def _error(point: Point, name: str, base: float) -> tuple[float, float, tuple[int, ...]]:
    """Return the relative error at a point, the error that is rounding, and the entry that is off most."""
    truth = point.truths[name]
    off, true = [], []
    for value, results in zip(truth.values, point.results, strict=False):
        result = results[name]
        assert result is not None
        off.append(np.where(truth.smooth, np.abs(result - value), 0.0))
        true.append(np.where(truth.smooth, value, 0.0))
    size, count = float(np.linalg.norm(true)), math.sqrt(len(off))
    absolute = count * max(_ESTIMATES * max(truth.errors), ROUNDED * truth.natural)
    scale = size if size > 1e3 * absolute else max(count * truth.natural, 1e-300)
    worst = max(off, key=lambda each: float(each.max()))
    where = tuple(int(each) for each in np.unravel_index(int(worst.argmax()), worst.shape))
    return float(np.linalg.norm(off)) / scale, max(base, absolute / scale), where
