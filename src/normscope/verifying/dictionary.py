"""Products and sums of what is at hand, for gradients of any argument: which products a right and a wrong one hold."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from normscope.verifying.calls import Array
from normscope.verifying.edits import Explained
from normscope.verifying.factors import factor_words, is_named, same
from normscope.verifying.fitting import Rows, Sample, coefficients
from normscope.verifying.recognise import Core, axes_words, subsets
from normscope.verifying.terms import Term, changed, value

_MOST_COLUMNS = 900
_MOST_VALUES = 4_000_000  # of all columns together, before entries are picked


class Column(NamedTuple):
    """A product or sum, as a vector, and its formula."""

    words: str
    vector: Array


class Dictionary:
    """All products and sums for one argument.

    Args:
        name: The argument.
        core: What the forward function was recognised to compute.
        samples: All samples.
        rows: Picks entries.
    """

    def __init__(self, name: str, core: Core | None, samples: Sequence[Sample], rows: Rows) -> None:
        self._name, self._core, self._samples, self._rows = name, core, samples, rows
        self.columns: list[Column] = []
        shape, size = rows.shape, max(int(np.prod(samples[0].output.shape)), int(np.prod(rows.shape)))
        limit = min(_MOST_COLUMNS, _MOST_VALUES // max(size * len(samples), 1))
        vectors: list[Array] = []
        for words, arrays in self._all(shape):
            if len(vectors) >= limit:
                break
            if any(not np.isfinite(each).all() for each in arrays):
                continue
            vector = rows.vector(arrays)
            length = float(np.linalg.norm(vector))
            if length == 0:
                continue
            if vectors and float(np.abs(np.stack(vectors) @ (vector / length)).max()) > 1 - 1e-13:
                continue  # the same but for a factor
            vectors.append(vector / length)
            self.columns.append(Column(words, vector))
        self._unit = np.stack(vectors, 1) if vectors else np.zeros((0, 0))

    # -- what it holds ------------------------------------------------------------------------------------------------

    def _all(self, shape: tuple[int, ...]) -> Iterator[tuple[str, list[Array]]]:
        output = self._samples[0].output.shape
        atoms = self._atoms(shape)
        pairs = [*((one, "1") for one in atoms), *itertools.combinations_with_replacement([*atoms][1:], 2)]
        axes = None if output == shape else _summed(shape, output)
        kept = _kept(shape, output)
        if output == shape:
            for pair in pairs:
                yield _product(pair, "g"), [self._times(atoms, pair, place) for place in range(len(self._samples))]
            yield from self._coupled(atoms)
        elif axes is not None:
            for pair in pairs:
                made = [self._times(atoms, pair, place) for place in range(len(self._samples))]
                words = f"sum({_product(pair, 'g')}) over {axes_words(axes, len(output))}"
                yield words, [each.sum(axes).reshape(shape) for each in made]
        elif kept is not None:
            for pair in pairs:
                made = [
                    atoms[pair[0]][place] * atoms[pair[1]][place] * sample.incoming.reshape(kept)
                    for place, sample in enumerate(self._samples)
                ]
                yield _product(pair, "g"), made
        if len(shape) == 2 and len(output) == 2:
            yield from self._matrices(shape)

    def _atoms(self, shape: tuple[int, ...]) -> dict[str, list[Array]]:
        """Return factors that fit the output (or the argument, where the output is smaller), by name."""
        output = self._samples[0].output.shape
        target = shape if _kept(shape, output) is not None and output != shape else output
        found: dict[str, list[Array]] = {"1": [np.ones(()) for _ in self._samples]}
        if self._core is not None and self._core.kind == "norm":
            for words, key in (("xhat", "h"), ("(x - mean)", "xc"), ("1/sigma", "r")):
                found[words] = [each.parts.values[key] for each in self._samples if each.parts is not None]
            bare = Term("", outer="h", power=0)
            for term, words in changed(bare, self._core, 0):
                if term.eps:
                    found[f"xhat that {words}"] = [value(term, self._core, each) for each in self._samples]
        for name in self._samples[0].inputs:
            arrays = [each.inputs[name] for each in self._samples]
            if _expands(arrays[0].shape, target):
                found[name] = arrays
                if arrays[0].shape == target and len(target) and self._core is None:
                    for axis in range(len(target)):
                        found[f"softmax({name}, axis {axis})"] = [_softmax(each, axis) for each in arrays]
                    found[f"({name} > 0)"] = [(each > 0).astype(float) for each in arrays]
        if target == output and output != ():
            found["output"] = [each.output for each in self._samples]
            if self._core is None:
                found["(output > 0)"] = [(each.output > 0).astype(float) for each in self._samples]
        elif _kept(shape, output) is not None:
            kept = _kept(shape, output)
            found["output"] = [each.output.reshape(kept) for each in self._samples]
            found["1/output"] = [1 / each for each in found["output"]]
        return found

    def _times(self, atoms: Mapping[str, list[Array]], pair: tuple[str, str], place: int) -> Array:
        sample = self._samples[place]
        return np.broadcast_to(atoms[pair[0]][place] * atoms[pair[1]][place] * sample.incoming, sample.output.shape)

    def _coupled(self, atoms: Mapping[str, list[Array]]) -> Iterator[tuple[str, list[Array]]]:
        shape = self._samples[0].output.shape
        names = list(atoms)[:9]
        for axes in subsets(len(shape)):
            over = axes_words(axes, len(shape))
            for outer, inner in itertools.product(names, names):
                made = [
                    np.broadcast_to(
                        atoms[outer][place] * (atoms[inner][place] * sample.incoming).mean(axes, keepdims=True), shape
                    )
                    for place, sample in enumerate(self._samples)
                ]
                mean = f"mean({_product((inner, '1'), 'g')} over {over})"
                yield (mean if outer == "1" else f"{outer} * {mean}"), made

    def _matrices(self, shape: tuple[int, ...]) -> Iterator[tuple[str, list[Array]]]:
        """Yield products of two matrices, one of which holds the incoming gradient."""
        signals: dict[str, list[Array]] = {"g": [each.incoming for each in self._samples]}
        signals["(g * (output > 0))"] = [each.incoming * (each.output > 0) for each in self._samples]
        signals["(g * (1 - output^2))"] = [each.incoming * (1 - each.output**2) for each in self._samples]
        signals["(g * output * (1 - output))"] = [
            each.incoming * each.output * (1 - each.output) for each in self._samples
        ]
        others = {
            name: [each.inputs[name] for each in self._samples]
            for name, array in self._samples[0].inputs.items()
            if array.ndim == 2
        } | {"output": [each.output for each in self._samples]}
        for signal, other in itertools.product(signals, others):
            for first, second in ((False, True), (True, False), (False, False), (True, True)):
                for swapped in (False, True):
                    one = [each.T if first else each for each in signals[signal]]
                    two = [each.T if second else each for each in others[other]]
                    words = (f"{signal}{'.T' if first else ''}", f"{other}{'.T' if second else ''}")
                    if swapped:
                        one, two, words = two, one, words[::-1]
                    if one[0].shape[1] == two[0].shape[0] and (one[0].shape[0], two[0].shape[1]) == shape:
                        yield " @ ".join(words), [left @ right for left, right in zip(one, two, strict=True)]

    # -- fits ---------------------------------------------------------------------------------------------------------

    def fit(self, wanted: Array, gap: Array, truth: Array) -> list[tuple[Column, float]] | None:
        """Return one or two columns that make up a vector, each with its factor; None if no two do.

        Args:
            wanted: The vector.
            gap: The error that a fit must be small beside.
            truth: The true gradient.
        """
        if not self.columns or len(wanted) < 12:
            return None
        aim = self._unit.T @ wanted
        for place in np.argsort(-np.abs(aim))[:3]:
            factors, rest = coefficients([self.columns[place].vector], wanted)
            if self._rows.closes(rest, gap, truth):
                return [(self.columns[place], float(factors[0]))]
        gram = self._unit.T @ self._unit
        apart = 1 - gram**2
        explained = (aim[:, None] ** 2 + aim[None, :] ** 2 - 2 * gram * aim[:, None] * aim[None, :]) / np.where(
            apart > 1e-12, apart, np.inf
        )
        upper = np.triu_indices(len(aim), 1)
        best = np.argsort(-explained[upper], kind="stable")[:200]
        for number in best:
            pair = [self.columns[int(side[number])] for side in upper]
            factors, rest = coefficients([each.vector for each in pair], wanted)
            if self._rows.closes(rest, gap, truth):
                return [(each, float(factor)) for each, factor in zip(pair, factors, strict=True)]
        return None

    def explain(self, truth: Array, result: Array, sizes: Mapping[str, int]) -> Explained | None:
        """Return what a wrong gradient holds that the right one does not, or the other way; None if that is unknown."""
        gap = result - truth
        right = self.fit(truth, truth, truth)
        wrong = self.fit(result, gap, truth)
        if right is None or wrong is None:
            off = self.fit(gap, gap, truth)
            return (
                None
                if off is None
                else Explained(f"the result is the right gradient and besides {_formula(off, sizes)}", 2)
            )
        held = {column.words: factor for column, factor in right}
        found = {column.words: factor for column, factor in wrong}
        said = [
            f"the term {words} {factor_words(factor / held[words], sizes)}"
            for words, factor in found.items()
            if words in held and not same(factor, held[words])
        ]
        lost = [(column, factor) for column, factor in right if column.words not in found]
        extra = [(column, factor) for column, factor in wrong if column.words not in held]
        if lost and extra:
            said.append(f"the result has {_formula(extra, sizes)} where the right gradient has {_formula(lost, sizes)}")
        elif lost:
            said.append(f"the term {_formula(lost, sizes)} is missing")
        elif extra:
            said.append(f"the result has the term {_formula(extra, sizes)} too many")
        return Explained("; ".join(said), len(said)) if said else None


def _formula(terms: Sequence[tuple[Column, float]], sizes: Mapping[str, int]) -> str:
    parts = []
    for column, factor in terms:
        sign = "-" if factor < 0 else "+"
        size = abs(factor)
        counts = [count for count in sizes.values() if same(size, count) or same(size, 1 / count)]
        if same(size, 1.0):
            amount = ""
        elif counts:
            amount = f"{counts[0]} * " if size > 1 else f"1/{counts[0]} * "
        else:
            amount = f"{size:.4g} * "
        parts.append(f"{sign} {amount}{column.words}")
    text = " ".join(parts)
    return text.removeprefix("+ ") if text.startswith("+") else f"-{text[2:]}"


def named_formula(terms: Sequence[tuple[Column, float]], sizes: Mapping[str, int]) -> bool:
    """Return whether all factors of a formula are known numbers."""
    return all(is_named(factor, sizes) for _, factor in terms)


def _product(pair: tuple[str, str], last: str) -> str:
    return " * ".join([*(each for each in pair if each != "1"), last])


def _expands(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def _summed(shape: tuple[int, ...], output: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the axes of the output over which a gradient is summed for an argument that is broadcast; None if none."""
    if not _expands(shape, output):
        return None
    padded = (1,) * (len(output) - len(shape)) + shape
    return tuple(axis for axis, (one, many) in enumerate(zip(padded, output, strict=True)) if one != many)


def _kept(shape: tuple[int, ...], output: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the output's shape with an axis of 1 for each axis that the forward function sums over; None if none."""
    if output == () or shape == output:
        return (1,) * len(shape) if shape != output else None
    for axes in subsets(len(shape)):
        if tuple(size for axis, size in enumerate(shape) if axis not in axes) == output or (
            tuple(1 if axis in axes else size for axis, size in enumerate(shape)) == output
        ):
            return tuple(1 if axis in axes else size for axis, size in enumerate(shape))
    return None


def _softmax(value: Array, axis: int) -> Array:
    raised = np.exp(value - value.max(axis, keepdims=True))
    return raised / raised.sum(axis, keepdims=True)
