"""Explain a wrong input gradient by its terms: which is missing, doubled, or written wrongly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar

from normscope.verifying.calls import Array
from normscope.verifying.factors import factor_words, is_named, same
from normscope.verifying.fitting import Rows, Sample, coefficients, promising
from normscope.verifying.recognise import Core
from normscope.verifying.terms import Term, changed, right_terms, value

_ABSENT = 1e-6
#: What a factor without a name adds to the cost: it makes the cost no whole number.
_UNNAMED = 1.25


class Variant(NamedTuple):
    """A term as it may be written: its values, and what is wrong with it."""

    column: Array
    words: tuple[str, ...]
    term: Term | None


@dataclass(frozen=True)
class Explained:
    """An explanation.

    Attributes:
        words: The sentence.
        cost: How many things it says are wrong; an unnamed factor counts more.
    """

    words: str
    cost: float


def explain_terms(
    core: Core, samples: Sequence[Sample], rows: Rows, truth: Array, result: Array, sizes: Mapping[str, int]
) -> Explained | None:
    """Return what is wrong with the terms of an input gradient; None if they do not account for the result.

    Args:
        core: What the forward function computes.
        samples: All samples.
        rows: Picks entries.
        truth: The true gradient, as a vector.
        result: The result of the formula, as a vector.
        sizes: Numbers of entries, by what they count.
    """
    terms = right_terms(core)
    if not terms:
        return None
    bare = [Variant(rows.vector([value(term, core, each) for each in samples]), (), term) for term in terms]
    right, rest = coefficients([each.column for each in bare], truth)
    names = [term.name for term in terms]
    if not rows.closes(rest, truth, truth):
        # No mean square: the part through the scale is what is left of the true gradient.
        if core.kind != "norm" or not np.isnan(core.ratio):
            return None
        bare.append(_coupling(core, samples, rows, truth - sum(each.column for each in bare), truth))
        right, _ = coefficients([each.column for each in bare], truth)
        names = [*names, "the coupling through the scale"]
    search = _Search(core, rows.shape, rows, truth, result, right, names, sizes)
    search.look([[each] for each in bare])
    if search.found is not None and search.found.cost % 1 == 0:
        return search.found
    dimensions = samples[0].output.ndim
    lists = [[each, *_variants(each, core, samples, rows, dimensions)] for each in bare]
    for place in range(len(lists)):
        one = [[each] if at != place else lists[place] for at, each in enumerate(bare)]
        search.look(one)
    if search.found is None or search.found.cost > 1:
        search.look(lists)
    if search.found is None:
        for place in range(len(bare)):
            twice = [
                Variant(second.column, (*first.words, *second.words), second.term)
                for first in lists[place][1:]
                for second in _variants(first, core, samples, rows, dimensions)
            ]
            search.look([twice if at == place else [other] for at, other in enumerate(bare)])
    if search.found is None and core.kind == "norm" and not np.isnan(core.ratio):
        search.look_for_eps(terms, samples)
    return search.found


def _coupling(core: Core, samples: Sequence[Sample], rows: Rows, left: Array, truth: Array) -> Variant:
    """Return the term through the scale of a core that is no root mean square, such as a sum of absolute values."""
    for outer in ("sign", "1", "x"):
        for inner in ("h", "x"):
            term = Term("", outer, inner, True, -1)
            column = rows.vector([value(term, core, each) for each in samples])
            _, rest = coefficients([column], left)
            if rows.closes(rest, left, truth):
                return Variant(column, (), term)
    return Variant(left, (), None)


def _variants(variant: Variant, core: Core, samples: Sequence[Sample], rows: Rows, dimensions: int) -> list[Variant]:
    if variant.term is None:
        return []
    found = []
    for term, words in changed(variant.term, core, dimensions):
        column = rows.vector([value(term, core, each) for each in samples])
        if np.isfinite(column).all() and column.any():
            found.append(Variant(column, (words,), term))
    return found


def _as_sum(variant: Variant, factor: float, core: Core, shape: tuple[int, ...]) -> float:
    """Return the factor of a term; of a mean over other axes, 1 where the sum over these has the right divisor."""
    if variant.term is None or variant.term.axes is None or core.kind != "norm":
        return factor
    entries = int(np.prod([shape[axis] for axis in variant.term.axes]))
    return 1.0 if same(factor * core.groups.count, entries) else factor


class _Search:
    """The simplest combination of variants that accounts for a result."""

    def __init__(
        self,
        core: Core,
        shape: tuple[int, ...],
        rows: Rows,
        truth: Array,
        result: Array,
        right: Array,
        names: list[str],
        sizes: Mapping[str, int],
    ) -> None:
        self._core, self._shape = core, shape
        self._rows, self._truth, self._result = rows, truth, result
        self._right, self._names, self._sizes = right, names, sizes
        self.found: Explained | None = None

    def look(self, lists: list[list[Variant]]) -> None:
        """Look among the combinations of a variant from each list."""
        if not all(lists):
            return
        for combination in promising([[each.column for each in variants] for variants in lists], self._result):
            chosen = [variants[place] for variants, place in zip(lists, combination, strict=True)]
            factors, rest = coefficients([each.column for each in chosen], self._result)
            if self._rows.closes(rest, self._result - self._truth, self._truth):
                relative = [
                    _as_sum(each, float(one / two), self._core, self._shape)
                    for each, one, two in zip(chosen, factors, self._right, strict=True)
                ]
                said = _said(chosen, relative, self._names, self._sizes)
                if said is not None and (self.found is None or said.cost < self.found.cost):
                    self.found = said

    def look_for_eps(self, terms: Sequence[Term], samples: Sequence[Sample]) -> None:
        """Look for another eps with which all terms are right."""

        def left(power: float) -> float:
            columns = [
                self._rows.vector([value(replace(term, eps=float(10.0**power)), self._core, each) for each in samples])
                for term in terms
            ]
            made = sum(column * factor for column, factor in zip(columns, self._right, strict=True))
            return float(np.linalg.norm(self._result - made))

        powers = np.linspace(-12.0, 1.0, 53)
        start = powers[int(np.argmin([left(power) for power in powers]))]
        best = float(
            minimize_scalar(left, bounds=(start - 0.3, start + 0.3), method="bounded", options={"xatol": 1e-12}).x
        )
        size = float(np.linalg.norm(self._truth))
        gap = float(np.linalg.norm(self._result - self._truth))
        if left(best) <= max(self._rows.rounding * size, 1e-4 * gap) and left(best) < 0.02 * gap:
            words = f"every term has an eps of {10.0**best:.4g} in sigma, where forward has {self._core.eps:.4g}"
            self.found = Explained(words, 1)


def _said(
    chosen: Sequence[Variant], factors: Sequence[float], names: Sequence[str], sizes: Mapping[str, int]
) -> Explained | None:
    """Return what is wrong with chosen variants and their factors."""
    if any(abs(factor) < _ABSENT and each.words for each, factor in zip(chosen, factors, strict=True)):
        return None  # what is absent is not written wrongly
    there = [each for each, factor in zip(chosen, factors, strict=True) if abs(factor) >= _ABSENT]
    if not there:
        return None
    shared = [words for words in there[0].words if len(there) > 1 and all(words in each.words for each in there)]
    common = factors[0] if len({round(factor, 5) for factor in factors}) == 1 and len(factors) > 1 else 1.0
    sentences, cost = [f"every term {words}" for words in shared], float(len(shared))
    if not same(common, 1.0):
        sentences.append(f"the result {factor_words(common, sizes)}")
        cost += 1 if is_named(common, sizes) else _UNNAMED
    wrong: dict[str, list[str]] = {}
    for each, factor, name in zip(chosen, factors, names, strict=True):
        own = [words for words in each.words if words not in shared]
        factor = factor / common
        if abs(factor) < _ABSENT:
            own = ["is missing"]
        elif not same(factor, 1.0):
            cost += 0 if is_named(factor, sizes) else _UNNAMED
            own.append(factor_words(factor, sizes))
        cost += 1 if own else 0
        cost += max(len(own) - 1, 0)
        if own:
            wrong.setdefault(" and ".join(own), []).append(name)
    sentences += [f"{' and '.join(which)}{_of_many(words, len(which))}" for words, which in wrong.items()]
    return Explained("; ".join(sentences), cost) if sentences else None


def _of_many(words: str, count: int) -> str:
    if count == 1:
        return f" {words}"
    return (
        f" are{words.removeprefix('is')}" if words in ("is missing", "is doubled", "is halved") else f": each {words}"
    )
