"""Contrasts: what is judged. Two sides, a quantity and a condition give one number a seed, and the numbers a word."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from normscope._errors import UsageError
from normscope.records import Estimate, Outcome, Verdict
from normscope.stats import decide, interval, tost
from normscope.studies.evidence import Arrivals, Evidence, Floats
from normscope.studies.quantity import Best, Quantity

#: A side of a contrast: the name of an arm, a point (``{"arm": ..., "features": "raw"}``), a number (a theory, a
#: bound), or None for nothing.
Side = str | Mapping[str, Any] | float | None


@dataclass(frozen=True)
class Contrast:
    """A quantity of two sides under one condition, paired by seed, and the rule that judges it.

    The effect is positive where the first side is larger, which is the direction of the claim:
    ``Contrast(steps, "none", "batch")`` speaks for "batch norm takes fewer steps". One rule judges: beyond a margin
    (the usual one), equal within a bound, or exact within a bound.

    Attributes:
        quantity: What is measured.
        first: The side that the claim says is larger. None if the quantity needs no arm.
        second: The side that it is compared with; a number for a theory or a bound; None if the quantity itself is the
            effect.
        at: The condition: values of the point. A ``Best`` gives every arm its own best value.
        scale: ``"difference"``, ``"log-ratio"`` or ``"value"``: how two numbers become one effect.
        effect: How they do, where it is neither a difference nor a log-ratio: called with (first, second).
        claim: The claim in a sentence; the study's own if empty.
        endpoint: What is measured, in words; made of quantity, sides and condition if empty.
        reason: The sentence with the numbers, or what makes one of the ``Reading``; made of the numbers if empty.
        labels: Words for the two sides, in place of the arms'.
        margin: Smallest effect of interest; the study's own if None.
        refuted_below: Where refutation begins, if not at the margin.
        equal_within: Judge that both sides are alike, within this bound, by two one-sided tests.
        exact_within: Judge an identity: the quantity is a relative error, and must lie below this bound in all seeds.
        premises: What must hold for a verdict in favour: a claim is not supported if one of these is not.
        in_headline: Whether its sentence is added to that of the study's primary verdict.
    """

    quantity: Quantity
    first: Side = None
    second: Side = None
    at: Mapping[str, Any] = field(default_factory=dict)
    scale: str = "difference"
    effect: Callable[[Any, Any], Floats] | None = None
    claim: str = ""
    endpoint: str = ""
    reason: "str | Callable[[Reading], str]" = ""
    labels: tuple[str, str] = ("", "")
    margin: float | None = None
    refuted_below: float | None = None
    equal_within: float | None = None
    exact_within: float | None = None
    premises: "tuple[Contrast, ...]" = ()
    in_headline: bool = False

    def __post_init__(self) -> None:
        rules = [rule for rule in (self.margin, self.equal_within, self.exact_within) if rule is not None]
        if len(rules) > 1:
            raise UsageError("a contrast has one rule: margin, equal_within or exact_within")
        if any(bound is not None and bound <= 0 for bound in (self.equal_within, self.exact_within)):
            raise UsageError("equal_within and exact_within are bounds on a size: they must be positive")

    def read(self, evidence: Evidence) -> "Reading":
        """Return the numbers of both sides and the effect of each seed."""
        nothing = Sample({}, None, None)
        second = nothing if self.second is None else self._sample(self.second, evidence)
        return Reading(self, self._sample(self.first, evidence), second, evidence.level)

    def _sample(self, side: Side, evidence: Evidence) -> "Sample":
        if isinstance(side, int | float):
            return Sample({}, float(side), None)
        where = self.where(side, evidence)
        found = self.quantity.read(evidence, **where)
        if isinstance(found, Arrivals):
            return Sample(where, found.steps, found)
        return Sample(where, found, None)

    def where(self, side: Side, evidence: Evidence) -> dict[str, Any]:
        """Return arm and point of a side, with the best values of that arm in place of every ``Best``."""
        where = {**self.at, **({"arm": side} if isinstance(side, str) else side if isinstance(side, Mapping) else {})}
        fixed = {key: value for key, value in where.items() if not isinstance(value, Best)}
        own = {key: value.of(evidence, **fixed) for key, value in where.items() if isinstance(value, Best)}
        return {key: own.get(key, value) for key, value in where.items()}


class Sample(NamedTuple):
    """What one side of a contrast is.

    Attributes:
        where: Arm and point, own best values filled in; empty for a number.
        values: A number a seed (n,), a number that stands for a theory, or None for nothing.
        arrivals: The censored times, if the quantity is one.
    """

    where: Mapping[str, Any]
    values: Floats | float | None
    arrivals: Arrivals | None

    @property
    def never(self) -> int:
        """How many runs never got there."""
        return 0 if self.arrivals is None else int(self.arrivals.missed.sum())


@dataclass(frozen=True)
class Reading:
    """The numbers of a contrast, before any word.

    Attributes:
        contrast: What was read.
        first: The side that the claim says is larger.
        second: The other side.
        level: Confidence level of intervals.
    """

    contrast: Contrast
    first: Sample
    second: Sample
    level: float

    @cached_property
    def values(self) -> Floats:
        """Effect of each seed (n,), positive in the direction of the claim; of an identity powers of ten below."""
        contrast = self.contrast
        if contrast.exact_within is not None:
            return np.asarray(math.log10(contrast.exact_within) - np.log10(np.clip(self.errors, 1e-18, 1e18)))
        a: Any = self.first.values
        b: Any = self.second.values
        with np.errstate(divide="ignore", invalid="ignore"):
            if contrast.effect is not None:
                effects = contrast.effect(a, b)
            elif b is None:
                effects = a
            elif contrast.scale == "log-ratio":
                effects = self._logarithm(a) - self._logarithm(b)
            else:
                effects = a - b
        return np.asarray(effects, dtype=np.float64)

    def _logarithm(self, values: Any) -> Any:
        if isinstance(values, float):
            return math.log(values)
        return values if self.contrast.quantity.logs else np.log(values)

    @cached_property
    def errors(self) -> Floats:
        """Errors of an identity, a seed each; a seed without one counts as infinite."""
        return np.nan_to_num(np.asarray(self.first.values, dtype=np.float64), nan=np.inf)

    @cached_property
    def kept(self) -> Floats:
        """The effects that are numbers."""
        return self.values[np.isfinite(self.values)]

    @cached_property
    def effect(self) -> Estimate:
        """Mean effect over seeds, with its interval."""
        scale = "value" if self.contrast.exact_within is not None else self.contrast.scale
        if not len(self.kept):
            return unmeasured(self.level, scale)
        return interval(self.kept, scale=scale, level=self.level)

    @property
    def missing(self) -> str:
        """A sentence on the seeds without a number; empty if there are none."""
        if not len(self.kept):
            return "Not one seed could be measured."
        left = len(self.values) - len(self.kept)
        return f"{left} of {len(self.values)} seeds could not be measured." if left else ""

    def margin(self, default: float) -> float:
        """Return the margin that judges; ``default`` is the study's own."""
        contrast = self.contrast
        if contrast.exact_within is not None:
            return 0.0
        if contrast.equal_within is not None:
            return contrast.equal_within
        return default if contrast.margin is None else contrast.margin

    def judge(self, default: float) -> tuple[Outcome, float]:
        """Return the outcome and its p-value, by the contrast's rule.

        Args:
            default: The margin where the contrast has no rule of its own.
        """
        contrast = self.contrast
        if contrast.exact_within is not None:
            # An exact identity has no sampling error, so p = 0 when all seeds agree.
            below = self.values > 0
            word = Outcome.SUPPORTED if below.all() else Outcome.REFUTED if not below.any() else Outcome.INCONCLUSIVE
            return word, 1.0 if word is Outcome.INCONCLUSIVE else 0.0
        if not len(self.kept):
            return Outcome.INCONCLUSIVE, 1.0
        if contrast.equal_within is not None:
            return alike(self.kept, contrast.equal_within, level=self.level, scale=contrast.scale)
        return decide(
            self.kept,
            margin=self.margin(default),
            refuted_below=contrast.refuted_below,
            level=self.level,
            scale=contrast.scale,
        )


def unmeasured(level: float, scale: str) -> Estimate:
    """Return the estimate of something that no seed allows to estimate."""
    return Estimate(math.nan, -math.inf, math.inf, level, 0, "not measured", scale)


def alike(values: Floats, bound: float, *, level: float, scale: str) -> tuple[Outcome, float]:
    """Judge that two things are alike: supported if their difference lies within a bound, by two one-sided tests.

    Refuted if the interval lies wholly outside the bound, on either side.

    Args:
        values: One finite difference (or log-ratio) a seed.
        bound: Largest difference that counts as none, positive.
        level: Confidence level.
        scale: What the values are.

    Returns:
        The outcome and its p-value.
    """
    within, p, _ = tost(values, low=-bound, high=bound, level=level, scale=scale)
    if within:
        return Outcome.SUPPORTED, p
    above, p_above = decide(values, margin=bound, level=level, scale=scale)
    below, p_below = decide(-values, margin=bound, level=level, scale=scale)
    if Outcome.SUPPORTED in (above, below):
        return Outcome.REFUTED, min(p_above, p_below)
    return Outcome.INCONCLUSIVE, p


@dataclass(frozen=True)
class AllOf:
    """A claim that is to hold under every one of several conditions: its parts, judged together by ``conjunction``.

    Attributes:
        parts: Contrasts, or verdicts of another kind, with p-values.
        claim: The claim in a sentence; the study's own if empty.
        endpoint: What is measured; the study's own if empty.
        reason: A sentence, or what makes one of the verdict (whose parts are judged); the parts' sentences if empty.
    """

    parts: Sequence[Contrast | Verdict]
    claim: str = ""
    endpoint: str = ""
    reason: str | Callable[[Verdict], str] = ""


def conjunction(parts: Sequence[Verdict], alpha: float) -> tuple[Outcome, float, Verdict]:
    """Judge a claim that is to hold under every one of several conditions.

    *Supported* if every part is: an intersection-union test, whose p-value is the largest of theirs. *Refuted* if one
    part is; that one of several is looked for is paid for by multiplying its p-value by their number (Bonferroni).

    Args:
        parts: Verdicts with p-values, one a condition.
        alpha: One minus the level of their intervals.

    Returns:
        The outcome, its p-value, and the part that decided: the weakest support or the strongest refutation.
    """
    worst = min(parts, key=lambda part: part.effect.low - part.margin)
    if all(part.outcome is Outcome.SUPPORTED for part in parts):
        return Outcome.SUPPORTED, max(_p_value(part) for part in parts), worst
    against = [part for part in parts if part.outcome is Outcome.REFUTED]
    if against:
        decisive = min(against, key=lambda part: (_p_value(part), part.effect.high))
        p = min(1.0, len(parts) * _p_value(decisive))
        return (Outcome.REFUTED if p <= alpha else Outcome.INCONCLUSIVE), p, decisive
    return Outcome.INCONCLUSIVE, 1.0, worst


def _p_value(verdict: Verdict) -> float:
    return 1.0 if verdict.p_value is None else verdict.p_value
