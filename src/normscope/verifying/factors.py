"""Factors by which a term is off, in words: a sign, a double, a missing 1/m, 1/(m-1) in place of 1/m."""

import math
from collections.abc import Iterator, Mapping

from normscope.records.numbers import number

_EXACT = 2e-6
#: Factors that come from powers and from constants of derivatives.
_PLAIN = {2.0: "is doubled", 0.5: "is halved"}
_RARE = {
    3.0: "is tripled",
    4.0: "is four times too large",
    0.25: "is a quarter of what it should be",
    1 / 3: "is a third of what it should be",
}


def factor_words(factor: float, sizes: Mapping[str, int]) -> str:
    """Return what a factor other than 1 says of a term, as the end of a sentence: "has the wrong sign".

    Args:
        factor: The factor relative to the right term.
        sizes: Numbers of entries that the term may be divided by, by what they count.
    """
    if abs(factor) < _EXACT:
        return "is missing"
    if same(factor, -1.0):
        return "has the wrong sign"
    sign = "has the wrong sign and " if factor < 0 else ""
    size = abs(factor)
    if named := list(dict.fromkeys(_named(size, sizes))):
        return sign + " or ".join(named)
    return f"{sign}is {number(size)} times as large as it should be"


def is_named(factor: float, sizes: Mapping[str, int]) -> bool:
    """Return whether a factor is a known number: 0, a sign, a double, a size."""
    return abs(factor) < _EXACT or same(abs(factor), 1.0) or any(True for _ in _named(abs(factor), sizes))


def same(one: float, other: float) -> bool:
    """Return whether two numbers are the same but for rounding of a fit."""
    return abs(one - other) <= _EXACT * max(abs(other), 1e-300)


def _named(size: float, sizes: Mapping[str, int]) -> Iterator[str]:
    """Yield what a factor may be, of the simplest kind that there is."""
    counted = [(what, count) for what, count in sizes.items() if count > 2]
    kinds = (
        [words for plain, words in _PLAIN.items() if same(size, plain)],
        [words for what, count in counted for words in _by_count(size, what, count)]
        + [words for plain, words in _RARE.items() if same(size, plain)],
        [words for what, count in sizes.items() if count > 1 for words in _by_degrees(size, what, count)],
        [words for what, count in counted for words in _by_root_or_two(size, what, count)],
    )
    yield from next((kind for kind in kinds if kind), [])


def _by_count(size: float, what: str, count: int) -> Iterator[str]:
    if same(size, count):
        yield f"lacks the factor 1/{count} (1 over {what}): a sum stands in place of a mean"
    if same(size, 1 / count):
        yield f"has a factor 1/{count} too many (1 over {what}): a mean stands in place of a sum"
    if same(size, 1 / count**2):
        yield f"has two factors 1/{count} too many (1 over {what})"


def _by_degrees(size: float, what: str, count: int) -> Iterator[str]:
    """Yield what m/(m-1) and its root say: the degrees of freedom of a variance."""
    if same(size, count / (count - 1)):
        yield f"has the factor 1/(m-1) where it should have 1/m, m = {count} ({what})"
    if same(size, (count - 1) / count):
        yield f"has the factor 1/m where it should have 1/(m-1), m = {count} ({what})"
    if same(size, math.sqrt(count / (count - 1))):
        yield f"has sqrt(m/(m-1)) too many, m = {count} ({what}): a biased variance stands in place of an unbiased"
    if same(size, math.sqrt((count - 1) / count)):
        yield f"lacks sqrt(m/(m-1)), m = {count} ({what}): an unbiased variance stands in place of a biased"


def _by_root_or_two(size: float, what: str, count: int) -> Iterator[str]:
    if same(size, math.sqrt(count)):
        yield f"lacks the factor 1/sqrt({count}) ({what})"
    if same(size, 1 / math.sqrt(count)):
        yield f"has a factor 1/sqrt({count}) too many ({what})"
    for plain, words in _PLAIN.items():
        if same(size, plain * count):
            yield f"lacks the factor 1/{count} (1 over {what}) and {words}"
        if same(size, plain / count):
            yield f"has a factor 1/{count} too many (1 over {what}) and {words}"
