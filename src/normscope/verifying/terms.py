"""The terms of the input gradient of a normalization or a softmax, and the ways in which each is written wrongly."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from normscope.verifying.calls import Array
from normscope.verifying.fitting import Sample
from normscope.verifying.groups import axes_words, subsets
from normscope.verifying.recognise import Core

_FACTORS = ("1", "x", "xc", "h", "y", "sign")


@dataclass(frozen=True)
class Term:
    """A term of an input gradient: ``sign * lead * outer * mean(inner * gain * g)``, or without the mean.

    Attributes:
        name: Its name in words.
        outer: What the mean is multiplied by.
        inner: What the gradient is multiplied by within the mean.
        reduced: Whether there is a mean.
        sign: 1 or -1.
        power: Power of 1/sigma in front.
        gain: Where the gain stands: ``"in"``, ``"none"``, ``"square"``, ``"outside"`` of the mean; ``"bare"`` without
            the 1 that is added to it.
        sloped: Whether the derivative of the activation is a factor.
        eps: How sigma is computed: as in the forward function if empty; a number is another eps.
        axes: Axes of the mean; those of the forward function if None.
        within: Whether the factor 1/sigma stands within the mean.
    """

    name: str
    outer: str = "1"
    inner: str = "1"
    reduced: bool = False
    sign: int = 1
    power: int = 1
    gain: str = "in"
    sloped: bool = True
    eps: str | float = ""
    axes: tuple[int, ...] | None = None
    within: bool = False


def right_terms(core: Core) -> list[Term]:
    """Return the terms of the true gradient, but for their constant factors."""
    if core.kind == "other":
        return []
    if core.kind == "softmax":
        return [
            Term("the term y * g", outer="h", power=0),
            Term("the coupling -y * sum(y * g)", "h", "h", True, -1, 0),
        ]
    if core.kind == "log-softmax":
        return [
            Term("the term g", power=0),
            Term("the coupling -softmax * sum(g)", "softmax", "1", True, -1, 0),
        ]
    gained = f"(1 + {core.gain}) * g" if core.plus_one else f"{core.gain} * g" if core.gain else "g"
    gained = f"{gained} * {core.activation}'" if core.activation else gained
    over = core.groups.words
    terms = [Term(f"the rescale term ({gained} / sigma)")]
    if core.centred:
        terms.append(Term(f"the mean coupling (-mean({gained}) / sigma, over {over})", "1", "1", True, -1))
    if not np.isnan(core.ratio):
        what = "variance" if core.centred else "scale"
        formula = f"(-xhat * mean(xhat * {gained}) / sigma, over {over})"
        terms.append(Term(f"the {what} coupling {formula}", "h", "h", True, -1))
    return terms


def value(term: Term, core: Core, sample: Sample) -> Array:
    """Return a term for a sample."""
    assert sample.parts is not None
    parts, gain, g = sample.parts.values, sample.parts.gain, sample.incoming
    r = _deviation(term.eps, core, parts["size"]) if term.eps not in ("", "lead") else parts["r"]
    named = {**parts, "1": np.ones(()), "y": sample.output, "sign": np.sign(parts["xc"])}
    if core.kind == "norm":
        named["h"] = parts["xc"] * r
    one = np.ones(())
    for axis in range(g.ndim if core.kind != "norm" else 0):
        raised = np.exp(parts["x"] - parts["x"].max(axis, keepdims=True))
        named[f"softmax {axis}"] = raised / raised.sum(axis, keepdims=True)
    signal = g * {"none": one, "square": gain**2, "outside": one, "in": gain, "bare": gain - 1}[term.gain]
    if term.sloped:
        signal = signal * sample.parts.slope
    lead = r**term.power
    outside_root = term.eps == "derived" or (not core.inside and term.eps in ("", "none"))
    if core.kind == "norm" and term.outer != "1" and term.inner != "1" and outside_root:
        lead = lead / (r * np.sqrt(parts["size"]))
    if not term.reduced:
        return term.sign * lead * named[term.outer] * named[term.inner] * signal
    product = named[term.inner] * signal * (lead if term.within else 1.0)
    mean = core.groups.mean(product) if term.axes is None else product.mean(term.axes, keepdims=True)
    if core.kind != "norm":  # a sum
        mean = mean * (core.groups.count if term.axes is None else product.size / mean.size)
    outer = named[term.outer] * (gain if term.gain == "outside" else 1.0)
    return np.broadcast_to(term.sign * outer * mean * (1.0 if term.within else lead), g.shape)


def _deviation(way: str | float, core: Core, size: Array) -> Array:
    """Return 1/sigma, computed in another way than the forward function does."""
    count = core.groups.count
    unbiased = count / (count - 1)
    if way == "none":
        return 1 / np.sqrt(core.ratio * size) if core.inside else 1 / (core.ratio * np.sqrt(size))
    if not isinstance(way, str):
        return 1 / np.sqrt(core.ratio * size + way) if core.inside else 1 / (core.ratio * np.sqrt(size) + way)
    if way in ("moved", "derived"):
        if core.inside:
            return 1 / (np.sqrt(core.ratio * size) + core.eps)
        return 1 / np.sqrt(core.ratio**2 * size + core.eps)
    factor = unbiased if way == "unbiased" else 1 / unbiased
    if core.inside:
        return 1 / np.sqrt(core.ratio * factor * size + core.eps)
    return 1 / (core.ratio * np.sqrt(factor * size) + core.eps)


def changed(term: Term, core: Core, dimensions: int) -> Iterator[tuple[Term, str]]:
    """Yield a term with one thing wrong, and what is wrong with it as the end of a sentence."""
    if core.activation:
        yield replace(term, sloped=False), f"lacks the derivative of {core.activation}"
    if core.gain:
        name = f"1 + {core.gain}" if core.plus_one else core.gain
        yield replace(term, gain="none"), f"lacks the factor {name}"
        yield replace(term, gain="square"), f"has the factor {name} twice"
        if core.plus_one:
            yield replace(term, gain="bare"), f"has the factor {core.gain} where {name} belongs"
        if term.reduced:
            yield replace(term, gain="outside"), f"has the factor {name} outside of the mean, where it varies"
    yield from _deviations(term, core)
    if term.reduced:
        for axes in subsets(dimensions):
            if axes == core.groups.axes and len(core.groups.shape) == dimensions:
                continue
            what = "mean" if core.kind == "norm" else "sum"
            words = f"takes its {what} over {axes_words(axes, dimensions)} in place of {core.groups.words}"
            yield replace(term, axes=axes), words
            if core.kind == "norm":
                yield replace(term, axes=axes, within=True), words
    yield from _other_factors(term, core, dimensions)


def _deviations(term: Term, core: Core) -> Iterator[tuple[Term, str]]:
    if core.kind != "norm":
        return
    for shift, words in (
        (-1, "lacks the factor 1/sigma"),
        (1, "has a factor 1/sigma too many"),
        (-2, "has a factor sigma in place of 1/sigma"),
        (2, "has two factors 1/sigma too many"),
    ):
        yield replace(term, power=term.power + shift), words
    if np.isnan(core.ratio):
        return
    if core.eps:
        yield replace(term, eps="none"), "leaves out eps in sigma"
        where = ("outside", "inside") if core.inside else ("inside", "outside")
        words = f"has eps {where[0]} of the root, where forward has it {where[1]}"
        yield replace(term, eps="moved"), words
        if core.inside and term.reduced and term.outer != "1":
            yield replace(term, eps="derived"), words
        if not core.inside and term.reduced and term.outer != "1":
            yield replace(term, eps="lead"), "has eps outside of the root where the derivative of the root has none"
    if core.centred and core.groups.count > 1:
        biased = abs(core.ratio - 1) < 1e-6
        own, forwards = ("m - 1", "m") if biased else ("m", "m - 1")
        yield (
            replace(term, eps="unbiased" if biased else "biased"),
            f"divides the variance by {own} where forward divides by {forwards}",
        )


def _other_factors(term: Term, core: Core, dimensions: int) -> Iterator[tuple[Term, str]]:
    norm = core.kind == "norm"
    names = {"h": "xhat" if norm else "y", "xc": "(x - mean)", "x": "x", "y": "y", "1": "1", "softmax": "softmax"}
    names["sign"] = "sign(x)"
    if not norm:
        names["x"] = core.argument
    known = _FACTORS if norm else ("1", "x", "h", "softmax", *(f"softmax {axis}" for axis in range(dimensions)))
    if norm and not core.centred:
        known = tuple(name for name in known if name != "xc")
    names |= {name: f"softmax over axis {name[-1]}" for name in known if name.startswith("softmax ")}
    for outer in known:
        if outer != term.outer and (term.reduced or outer != "1"):
            yield replace(term, outer=outer), _in_place(names[outer], names[term.outer], "multiplies the mean by")
    if not term.reduced:
        return
    for inner in known:
        if inner != term.inner:
            yield replace(term, inner=inner), _in_place(names[inner], names[term.inner], "averages")
    for both in known:
        if both not in (term.outer, term.inner):
            words = f"has {names[both]} in both places where {names[term.inner]} belongs"
            yield replace(term, outer=both, inner=both), words


def _in_place(found: str, wanted: str, verb: str) -> str:
    if wanted == "1":
        return f"has a factor {found} too many"
    return f"lacks the factor {wanted}" if found == "1" else f"{verb} {found} where {wanted} belongs"
