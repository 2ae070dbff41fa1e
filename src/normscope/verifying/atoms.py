"""Quantities at hand of which gradients are made: inputs, output, parts of the core, norms, softmax."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from normscope.verifying.calls import Array
from normscope.verifying.fitting import Sample
from normscope.verifying.groups import kept_shape, subsets, views
from normscope.verifying.recognise import Core, Parts
from normscope.verifying.terms import Term, changed, value


def atoms(shape: tuple[int, ...], core: Core | None, samples: Sequence[Sample]) -> dict[str, list[Array]]:
    """Return quantities by name, one array a sample.

    Args:
        shape: The shape of the argument whose gradient is in question.
        core: What the forward function was recognised to compute.
        samples: All samples.

    Returns:
        Arrays that expand to the output; to the argument where the output has fewer entries. The first is 1.
    """
    output = samples[0].output.shape
    kept = kept_shape(shape, output) if not views(shape, output) or output == () else None
    target = output if kept is None else shape
    found: dict[str, list[Array]] = {"1": [np.ones(()) for _ in samples]}
    if core is not None:
        found |= _of_core(core, samples)
    for name in samples[0].inputs:
        arrays = [each.inputs[name] for each in samples]
        for view in views(arrays[0].shape, target):
            found[f"{name}{_place(view, target)}"] = [each.reshape(view) for each in arrays]
        if name in samples[0].labels and arrays[0].shape == target[:-1] and arrays[0].max() < target[-1]:
            found[f"onehot[{name}]"] = [_onehot(each.labels[name], target[-1]) for each in samples]
        if core is None and arrays[0].shape == target and target:
            found |= _of_input(name, arrays)
    if core is None:
        found |= _differences(target, samples)
    if kept is not None:
        found |= _reduced(shape, kept, samples)
    elif output:
        found["output"] = [each.output for each in samples]
        if core is None:
            found["(output > 0)"] = [(each.output > 0).astype(float) for each in samples]
            found["(1 - output^2)"] = [1 - each.output**2 for each in samples]
    return found


def _place(view: tuple[int, ...], target: tuple[int, ...]) -> str:
    """Say along which axis an argument of one axis lies, where that is not the last."""
    axes = [axis for axis, size in enumerate(view) if size > 1]
    if len(axes) != 1 or axes[0] == len(target) - 1:
        return ""
    return " of a row" if axes[0] == 0 else " of a channel"


def _of_input(name: str, arrays: Sequence[Array]) -> dict[str, list[Array]]:
    """Return functions of an argument that stand in derivatives."""
    found = {
        f"softmax({name}, axis {axis})": [_softmax(each, axis) for each in arrays] for axis in range(arrays[0].ndim)
    }
    found[f"({name} > 0)"] = [(each > 0).astype(float) for each in arrays]
    found[f"sign({name})"] = [np.sign(each) for each in arrays]
    found[f"sigmoid({name})"] = [1 / (1 + np.exp(-each)) for each in arrays]
    found[f"1/{name}"] = [1 / each for each in arrays]
    return found


def _differences(target: tuple[int, ...], samples: Sequence[Sample]) -> dict[str, list[Array]]:
    """Return differences of arguments of one shape, and their signs."""
    names = [name for name, array in samples[0].inputs.items() if array.shape == target and target]
    found = {}
    for one, two in itertools.combinations(names[:3], 2):
        gaps = [each.inputs[one] - each.inputs[two] for each in samples]
        found[f"[{one} - {two}]"] = gaps
        found[f"sign[{one} - {two}]"] = [np.sign(gap) for gap in gaps]
    return found


def _of_core(core: Core, samples: Sequence[Sample]) -> dict[str, list[Array]]:
    """Return the parts of a recognised core."""

    def each(make: Callable[[Parts], Array]) -> list[Array]:
        return [make(sample.parts) for sample in samples if sample.parts is not None]

    found: dict[str, list[Array]] = {}
    if core.activation:
        found[f"{core.activation}'"] = each(lambda parts: parts.slope)
    if core.kind == "norm":
        for words, key in (("xhat", "h"), ("(x - mean)", "xc"), ("1/sigma", "r")):
            found[words] = each(lambda parts, key=key: parts.values[key])  # type: ignore[misc]
        bare = Term("", outer="h", power=0)
        for term, words in changed(bare, core, 0):
            if term.eps:
                found[f"xhat that {words}"] = [value(term, core, sample) for sample in samples]
    elif core.kind == "other":
        found["core"] = each(lambda parts: parts.values["h"])
        found["(1 - core^2)"] = each(lambda parts: 1 - parts.values["h"] ** 2)
        found["(1 - core)"] = each(lambda parts: 1 - parts.values["h"])
    return found


def _reduced(shape: tuple[int, ...], kept: tuple[int, ...], samples: Sequence[Sample]) -> dict[str, list[Array]]:
    """Return the output, and lengths of inputs over the axes that the forward function sums over."""
    found = {"output": [each.output.reshape(kept) for each in samples]}
    found["1/output"] = [1 / each for each in found["output"]]
    axes = next((each for each in subsets(len(shape)) if _without(shape, each) == kept), ())
    for name, array in samples[0].inputs.items():
        if array.shape == shape and axes:
            values = [each.inputs[name] for each in samples]
            found[f"1/|{name}|"] = [(each**2).sum(axes, keepdims=True) ** -0.5 for each in values]
            found[f"[{name} - mean]"] = [each - each.mean(axes, keepdims=True) for each in values]
            found[f"1/sum[{name}]"] = [1 / each.sum(axes, keepdims=True) for each in values]
    return found


def _without(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if axis in axes else size for axis, size in enumerate(shape))


def _onehot(labels: Array, classes: int) -> Array:
    """Return ones at labels; a label below 0, such as one that is to be ignored, has none."""
    return (labels[..., None] == np.arange(classes)).astype(float)


def _softmax(value: Array, axis: int) -> Array:
    raised = np.exp(value - value.max(axis, keepdims=True))
    return raised / raised.sum(axis, keepdims=True)
