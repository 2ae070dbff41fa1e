"""Products and sums of what is at hand, for gradients of any argument: which products a right and a wrong one hold."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from normscope.verifying.atoms import atoms
from normscope.verifying.calls import Array
from normscope.verifying.edits import Explained
from normscope.verifying.factors import factor_words, same
from normscope.verifying.fitting import Rows, Sample, coefficients
from normscope.verifying.groups import axes_words, kept_shape, subsets, summed_axes, views
from normscope.verifying.recognise import Core

_MOST_COLUMNS = 900
_MOST_VALUES = 20_000_000  # of all columns together, before entries are picked


class Column(NamedTuple):
    """A product or sum, as a vector, and its formula.

    Attributes:
        words: The formula.
        vector: The values.
        factors: Names of the factors beside g; None where it is no plain product.
        over: The axes of the sum, in words; empty where it is no sum.
    """

    words: str
    vector: Array
    factors: tuple[str, ...] | None = None
    over: str = ""


class _Made(NamedTuple):
    """A product or sum, as an array a sample, before entries are picked."""

    words: str
    arrays: list[Array]
    factors: tuple[str, ...] | None = None
    over: str = ""


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
        for made in self._all(shape):
            if len(vectors) >= limit:
                break
            if any(not np.isfinite(each).all() for each in made.arrays):
                continue
            vector = rows.vector(made.arrays)
            length = float(np.linalg.norm(vector))
            if length == 0:
                continue
            if vectors and float(np.abs(np.stack(vectors) @ (vector / length)).max()) > 1 - 1e-13:
                continue  # the same but for a factor
            vectors.append(vector / length)
            self.columns.append(Column(made.words, vector, made.factors, made.over))
        self._unit = np.stack(vectors, 1) if vectors else np.zeros((0, 0))

    # -- what it holds ------------------------------------------------------------------------------------------------

    def _all(self, shape: tuple[int, ...]) -> Iterator[_Made]:
        output = self._samples[0].output.shape
        found = atoms(shape, self._core, self._samples)
        kept = kept_shape(shape, output) if not views(shape, output) or output == () else None
        count = range(len(self._samples))
        if kept is not None:
            bare = {name: each for name, each in found.items() if "(" not in name and "[" not in name}
            for product in dict.fromkeys([*_products(bare, 4 if len(bare) <= 9 else 2), *_products(found, 2)]):
                made = [
                    self._factors(found, product, place) * self._samples[place].incoming.reshape(kept)
                    for place in count
                ]
                yield _Made(_words(product), made, product)
            return
        plain = self._core is None or (self._core.kind == "norm" and not self._core.activation)
        products = list(_products(found, 2 if plain or len(found) > 9 else 3))
        if output == shape:
            for product in products:
                yield _Made(_words(product), [self._times(found, product, place) for place in count], product)
            yield from self._coupled(found)
        for axes in _sums(shape, output):
            over = axes_words(axes, len(output))
            for product in products:
                made = [self._times(found, product, place).sum(axes).reshape(shape) for place in count]
                yield _Made(f"sum({_words(product)}) over {over}", made, product, over)
        if len(shape) == 2 and len(output) == 2:
            yield from self._matrices(shape)

    def _factors(self, found: Mapping[str, list[Array]], product: Sequence[str], place: int) -> Array:
        made: Array = np.ones(())
        for name in product:
            made = made * found[name][place]
        return made

    def _times(self, found: Mapping[str, list[Array]], product: Sequence[str], place: int) -> Array:
        sample = self._samples[place]
        return np.broadcast_to(self._factors(found, product, place) * sample.incoming, sample.output.shape)

    def _coupled(self, found: Mapping[str, list[Array]]) -> Iterator[_Made]:
        shape = self._samples[0].output.shape
        names = list(found)[:9]
        for axes in subsets(len(shape)):
            over = axes_words(axes, len(shape))
            for outer, inner in itertools.product(names, names):
                made = [
                    np.broadcast_to(
                        found[outer][place] * (found[inner][place] * sample.incoming).mean(axes, keepdims=True), shape
                    )
                    for place, sample in enumerate(self._samples)
                ]
                mean = f"mean({_words((inner,))} over {over})"
                yield _Made(mean if outer == "1" else f"{outer} * {mean}", made)

    def _matrices(self, shape: tuple[int, ...]) -> Iterator[_Made]:
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
                        yield _Made(" @ ".join(words), [left @ right for left, right in zip(one, two, strict=True)])

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
        if len(lost) == len(extra) == 1 and (words := _other_factors(lost[0], extra[0], sizes)):
            said.append(words)
        elif lost and extra:
            said.append(f"the result has {_formula(extra, sizes)} where the right gradient has {_formula(lost, sizes)}")
        elif lost:
            said.append(f"the term {_formula(lost, sizes)} is missing")
        elif extra:
            said.append(f"the result has the term {_formula(extra, sizes)} too many")
        return Explained("; ".join(said), len(said)) if said else None


def _other_factors(right: tuple[Column, float], wrong: tuple[Column, float], sizes: Mapping[str, int]) -> str:
    """Return which factors of a product are missing or too many; empty where the products have little in common."""
    (one, held), (two, found) = right, wrong
    if one.factors is None or two.factors is None or one.over != two.over:
        return ""
    wanted, given = Counter(one.factors), Counter(two.factors)
    lost, extra = list((wanted - given).elements()), list((given - wanted).elements())
    said = [f"lacks the factor {' * '.join(lost)}"] if lost and not extra else []
    said += [f"has the factor {' * '.join(extra)} too many"] if extra and not lost else []
    said += [f"has the factor {' * '.join(extra)} where {' * '.join(lost)} belongs"] if extra and lost else []
    said += [factor_words(found / held, sizes)] if not same(found, held) else []
    return f"the result {' and '.join(said)}: the right gradient is {_formula([right], sizes)}"


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


def _products(found: Mapping[str, list[Array]], most: int) -> Iterator[tuple[str, ...]]:
    """Yield products of quantities by their names, short products first."""
    names = [name for name in found if name != "1"]
    for count in range(most + 1):
        yield from itertools.combinations_with_replacement(names, count)


def _words(product: Sequence[str]) -> str:
    return " * ".join([*(each for each in product if each != "1"), "g"])


def _sums(shape: tuple[int, ...], output: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Yield the axes of the output over which a sum has the shape of an argument, the right axes first."""
    right = summed_axes(shape, output)
    if right is None or shape == output:
        return
    yield right
    bare = tuple(size for size in shape if size != 1)
    for axes in subsets(len(output)):
        if axes != right and tuple(size for axis, size in enumerate(output) if axis not in axes and size != 1) == bare:
            yield axes
