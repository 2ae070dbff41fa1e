"""Say what is wrong with a gradient: from the simplest explanation to the least simple."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from normscope.verifying.calls import Array
from normscope.verifying.dictionary import Dictionary
from normscope.verifying.differences import quietly
from normscope.verifying.edits import Explained, explain_terms
from normscope.verifying.factors import factor_words, is_named, same
from normscope.verifying.fitting import Rows, Sample, coefficients, samples_of
from normscope.verifying.groups import axes_words, subsets, summed_axes, views
from normscope.verifying.recognise import Core, recognise
from normscope.verifying.samples import Sampled
from normscope.verifying.shapes import changes, orders, summed_elsewhere, summed_too_far

_POWERS = (1, -1, 2, -2, 0.5, -0.5)
_POWER_WORDS = {
    1: "has a factor {} too many",
    -1: "lacks a factor {}",
    2: "has two factors {} too many",
    -2: "lacks two factors {}",
    0.5: "has a factor sqrt({}) too many",
    -0.5: "lacks a factor sqrt({})",
}


class Explainer:
    """Explains wrong gradients of one formula.

    Args:
        sampled: What was sampled.
    """

    def __init__(self, sampled: Sampled) -> None:
        self._sampled = sampled
        self._core: Core | None = None
        self._samples: list[Sample] = []

    def explain(self, name: str, tolerance: float) -> Explained | None:
        """Return what is wrong with the gradient of an argument; None if no known term explains it.

        Args:
            name: The argument.
            tolerance: Relative size of rounding.
        """
        if not self._samples:
            known = recognise(self._sampled.calls, self._sampled.points)
            self._core = None if known is None else known[0]
            self._samples = samples_of(self._sampled, known)
        found = [result for each in self._samples if (result := each.results[name]) is not None]
        wanted, shape = self._samples[0].truths[name].shape, found[0].shape
        rows = Rows(self._sampled, name, tolerance)
        with quietly():
            if shape == wanted:
                return self._values(name, found, rows)
            choices = []
            for words, make in changes(shape, wanted, self._samples[0].output.shape):
                made = [np.asarray(make(each)) for each in found]
                truth, result = rows.vector(self._truths(name)), rows.vector(made)
                if rows.closes(result - truth, truth, truth):
                    return Explained(f"the result {words}", 1)
                choices.append((words, made))
            if words := summed_too_far(found, self._truths(name)):
                return Explained(f"the result {words}", 1)
            factors = [[np.ones(each.output.shape) for each in self._samples]]
            if self._core is not None:
                factors.append([each.parts.values["h"] * np.ones(()) for each in self._samples if each.parts])
            incoming = [each.incoming for each in self._samples]
            if words := summed_elsewhere(found, self._truths(name), incoming, factors):
                return Explained(f"the result {words}", 1)
            for words, made in choices:
                value = self._values(name, made, rows)
                if value is not None and value.cost % 1 == 0:
                    return Explained(f"the result {words}; {value.words}", 1 + value.cost)
        return None

    def _truths(self, name: str) -> list[Array]:
        return [each.truths[name] for each in self._samples]

    def _values(self, name: str, found: Sequence[Array], rows: Rows) -> Explained | None:
        """Return what is wrong with values of the right shape."""
        truth, result, sizes = rows.vector(self._truths(name)), rows.vector(found), self._sizes(name)
        if not np.isfinite(result).all():
            return None
        gap = result - truth
        for attempt in (self._zero, self._factor, self._swapped, self._transposed, self._without_gradient):
            if said := attempt(name, found, rows, truth, result):
                return said
        best: Explained | None = None
        if self._core is not None and self._core.argument == name:
            best = explain_terms(self._core, self._samples, rows, truth, result, sizes)
            if best is not None and best.cost <= 2 and best.cost % 1 == 0:
                return best
        if words := self._multiplied(name, rows, gap, truth, result, sizes):
            return Explained(words, 1)
        if self._core is None or self._core.argument != name or best is None:
            other = Dictionary(name, self._core, self._samples, rows).explain(truth, result, sizes)
            best = min((each for each in (best, other) if each is not None), key=lambda each: each.cost, default=None)
        return best

    def _sizes(self, name: str) -> dict[str, int]:
        """Return numbers of entries that a formula may divide by, by what they count; each number once."""
        shape = self._samples[0].output.shape
        own = self._samples[0].truths[name].shape
        found: dict[str, int] = {}

        def add(words: str, count: int) -> None:
            if count > 1 and count not in found.values():
                found[words] = count

        if self._core is not None and self._core.groups.axes:
            add("the entries that are normalized together", self._core.groups.count)
        if shape != own and int(np.prod(shape)) % max(int(np.prod(own)), 1) == 0:
            add("the entries that are summed", int(np.prod(shape)) // max(int(np.prod(own)), 1))
        for words, sides in (("the output", shape), (name, own)):
            for axis, size in enumerate(sides):
                add(f"the size of axis {axis} of {words}", size)
            if len(sides) <= 4:
                for axes in subsets(len(sides)):
                    count = int(np.prod([sides[axis] for axis in axes]))
                    add(f"the entries along {axes_words(axes, len(sides))} of {words}", count)
        for each, array in self._samples[0].inputs.items():
            for axis, size in enumerate(array.shape):
                add(f"the size of axis {axis} of {each}", size)
        return found

    # -- simple explanations ------------------------------------------------------------------------------------------

    def _zero(self, name: str, found: Sequence[Array], rows: Rows, truth: Array, result: Array) -> Explained | None:
        del name, found, rows
        if not truth.any() or float(np.linalg.norm(truth)) < 1e-6 * float(np.linalg.norm(result)):
            return None
        return None if result.any() else Explained("the result is zero", 1)

    def _factor(self, name: str, found: Sequence[Array], rows: Rows, truth: Array, result: Array) -> Explained | None:
        del found
        (factor,), rest = coefficients([truth], result)
        if len(truth) < 3 or not rows.closes(rest, result - truth, truth):
            return None
        sizes = self._sizes(name)
        if is_named(factor, sizes) or self._samples[0].truths[name].size > 1:
            return Explained(f"the result {factor_words(float(factor), sizes)}", 1)
        return None

    def _swapped(self, name: str, found: Sequence[Array], rows: Rows, truth: Array, result: Array) -> Explained | None:
        del found
        for other, value in self._samples[0].truths.items():
            if other == name or value.shape != rows.shape:
                continue
            column = rows.vector(self._truths(other))
            if rows.closes(result - column, result - truth, truth):
                return Explained(f"the result is the gradient of {other}: the results are in another order", 1)
        return None

    def _transposed(
        self, name: str, found: Sequence[Array], rows: Rows, truth: Array, result: Array
    ) -> Explained | None:
        del found
        for order in orders(len(rows.shape)) if len(rows.shape) <= 4 else ():
            turned = [each.transpose(order) for each in self._truths(name)]
            if turned[0].shape != rows.shape:
                continue
            (factor,), rest = coefficients([rows.vector(turned)], result)
            if rows.closes(rest, result - truth, truth) and same(abs(factor), 1.0):
                sign = " and has the wrong sign" if factor < 0 else ""
                return Explained(f"the result is transposed{sign}", 1)
        return None

    def _without_gradient(
        self, name: str, found: Sequence[Array], rows: Rows, truth: Array, result: Array
    ) -> Explained | None:
        del found
        ones = []
        for point in self._sampled.points:
            ones += [point.truths[name].values[-1]] * len(point.results)
        column = rows.vector(ones)
        if column.any() and rows.closes(result - column, result - truth, truth):
            return Explained("the result leaves out the incoming gradient g: it is right for g = 1 only", 1)
        return None

    def _multiplied(
        self, name: str, rows: Rows, gap: Array, truth: Array, result: Array, sizes: Mapping[str, int]
    ) -> str:
        """Return by which known quantities the result is the right gradient multiplied; empty if by none."""
        truths = self._truths(name)
        for words, arrays in self._quantities(name):
            for power in _POWERS:
                if power % 1 and any((each <= 0).any() for each in arrays):
                    continue
                made = [each**power * true for each, true in zip(arrays, truths, strict=True)]
                if any(not np.isfinite(each).all() for each in made):
                    continue
                (factor,), rest = coefficients([rows.vector(made)], result)
                if rows.closes(rest, gap, truth):
                    more = "" if same(factor, 1.0) else f" and {factor_words(float(factor), sizes)}"
                    return f"the result {_POWER_WORDS[power].format(words)}{more}"
        return ""

    def _quantities(self, name: str) -> Iterator[tuple[str, list[Array]]]:
        """Yield quantities that expand to the argument's shape, by name."""
        shape = self._samples[0].truths[name].shape
        output = self._samples[0].output.shape
        for other in self._samples[0].inputs:
            arrays = [each.inputs[other] for each in self._samples]
            for view in views(arrays[0].shape, shape):
                yield other, [each.reshape(view) for each in arrays]
        if self._core is not None and self._core.kind == "norm":
            r = [each.parts.values["r"] for each in self._samples if each.parts is not None]
            if output == shape:
                yield "1/sigma", r
            elif (axes := summed_axes(shape, output)) and all(
                np.ptp(each, axis=axes).max() <= 1e-12 * np.abs(each).max() for each in r
            ):
                yield "1/sigma", [each.mean(axes).reshape(shape) for each in r]
        if output == shape:
            yield "output", [each.output for each in self._samples]
