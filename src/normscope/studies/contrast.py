"""Contrasts: what is judged. Two sides, a quantity and a condition give one number a seed, and the numbers a word."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normscope._errors import DataError, UsageError
from normscope.records import Estimate, Outcome
from normscope.stats import Decision, alike, decide, interval, no_worse, two_looks
from normscope.stats.decide import FEWEST_SEEDS, decide_count, unusable
from normscope.studies.every_seed import each_above, exact, span
from normscope.studies.evidence import Arrivals, Evidence, Floats
from normscope.studies.quantity import Best, Quantity
from normscope.studies.sample import Sample, both_at_limits, neither_arrived, one_arrived
from normscope.usercode import defined_at

#: A side of a contrast: the name of an arm, a point (``{"arm": ..., "features": "raw"}``), a number (a theory, a
#: bound), or None for nothing.
Side = str | Mapping[str, Any] | float | None

_PLACE = re.compile(r"\{([^{}]*)\}")

#: How two numbers become one effect.
SCALES = ("difference", "log-ratio", "value")


@dataclass(frozen=True)
class Contrast:
    """A quantity of two sides under one condition, paired by seed, and the rule that gives it a word.

    The effect is positive where the first side is larger, which is the direction of the claim:
    ``Contrast(steps, "none", "batch")`` speaks for "batch norm takes fewer steps". One rule judges: beyond a margin
    (the usual one), alike within a bound, no worse than a bound, or exact within a bound.

    Attributes:
        quantity: What is measured.
        first: The side that the claim says is larger. None if the quantity needs no arm.
        second: The side that it is compared with; a number for a theory or a bound; None if the quantity itself is the
            effect.
        at: The condition: values of the point. A ``Best`` gives every arm its own best value.
        conditions: The rest of the condition, in words by the name of what varies: ``{"matching": "equal steps"}``.
        scale: ``"difference"``, ``"log-ratio"`` or ``"value"``: how two numbers become one effect.
        effect: How they do, where it is neither a difference nor a log-ratio: called with (first, second).
        unit: Unit of the effect in words; that of the quantity if None. ``"points"`` and ``"%"`` are hundredths.
        claim: The claim in a sentence; the study's own if empty. Contrasts of one claim are read together: the
            headline, and what was also tried.
        name: By which sentences of texts refer to the contrast (``data/texts.toml``).
        headline: Whether it is the contrast nearest to what the source states; the first one if none says so.
        endpoint: What is measured, in words; made of quantity, sides and condition if empty.
        says: The finding as a clause in which ``{effect}`` stands for the effect in natural units: ``"training takes
            {effect} steps with batch norm"``; made of quantity and sides if empty.
        comparative: Words for an effect in the direction of the claim and against it: ``("fewer", "more")``.
        reason: The sentence with the numbers, or what makes one of the ``Reading``; made of the numbers if empty.
        labels: Words for the two sides, in place of the arms'.
        margin: Smallest effect that matters; the study's own if None.
        margin_reason: Why it is that one, in a line; the study's own if empty.
        equal_within: Judge that both sides are alike, within this bound: the whole interval lies in it.
        no_worse_than: Judge that the first side is at least as large as the second less this bound.
        each_above: Judge that the first side lies above this bound in every seed that was run; nothing is concluded of
            others, so it is a rule for premises.
        exact_within: Judge an identity: the quantity is a relative error, and must lie below this bound in all seeds.
        counted: Whether the numbers are counts, such as bytes: where all seeds agree, they decide, without a p-value.
        premises: What must be the case for the contrast to say anything. A premise that does not hold makes it *not
            measurable*, whichever way its numbers point.
    """

    quantity: Quantity
    first: Side = None
    second: Side = None
    at: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, str] = field(default_factory=dict)
    scale: str = "difference"
    effect: Callable[[Any, Any], Floats] | None = None
    unit: str | None = None
    claim: str = ""
    name: str = ""
    headline: bool = False
    endpoint: str = ""
    says: str = ""
    comparative: tuple[str, str] | None = None
    reason: "str | Callable[[Reading], str]" = ""
    labels: tuple[str, str] = ("", "")
    margin: float | None = None
    margin_reason: str = ""
    equal_within: float | None = None
    no_worse_than: float | None = None
    each_above: float | None = None
    exact_within: float | None = None
    counted: bool = False
    premises: "tuple[Contrast, ...]" = ()

    def __post_init__(self) -> None:
        bounds = (self.equal_within, self.no_worse_than, self.each_above, self.exact_within)
        if sum(rule is not None for rule in (self.margin, *bounds)) > 1:
            raise UsageError("a contrast has one rule: margin, equal_within, no_worse_than, each_above or exact_within")
        if any(bound is not None and not 0 < bound < math.inf for bound in bounds):
            raise UsageError(
                "equal_within, no_worse_than, each_above and exact_within are bounds on a size: they must be positive"
            )
        if self.margin is not None and not 0 <= self.margin < math.inf:
            raise UsageError(f"the margin of a contrast is {self.margin}: give the smallest size that matters")
        if unknown := [name for name in _PLACE.findall(self.says) if name != "effect"]:
            raise UsageError(f"says has {{{unknown[0]}}}, and only {{effect}} is filled in: {self.says!r}")
        if self.scale not in SCALES:
            raise UsageError(f"scale {self.scale!r} of a contrast is not known; use {', '.join(map(repr, SCALES))}")

    def read(self, evidence: Evidence) -> "Reading":
        """Return the numbers of both sides and the effect of each seed."""
        second = Sample({}, None, None) if self.second is None else self._sample(self.second, evidence)
        return Reading(self, self._sample(self.first, evidence), second, evidence)

    def _sample(self, side: Side, evidence: Evidence) -> "Sample":
        if isinstance(side, int | float):
            return Sample({}, float(side), None)
        where = self.where(side, evidence)
        found = self.quantity.read(evidence, **where)
        return Sample(where, found.steps, found) if isinstance(found, Arrivals) else Sample(where, found, None)

    def where(self, side: Side, evidence: Evidence) -> dict[str, Any]:
        """Return arm and point of a side, with the best values of that arm in place of every ``Best``."""
        where = {**self.at, **({"arm": side} if isinstance(side, str) else side if isinstance(side, Mapping) else {})}
        fixed = {key: value for key, value in where.items() if not isinstance(value, Best)}
        own = {key: value.of(evidence, **fixed) for key, value in where.items() if isinstance(value, Best)}
        return {key: own.get(key, value) for key, value in where.items()}


@dataclass(frozen=True)
class Reading:
    """The numbers of a contrast, before any word.

    Attributes:
        contrast: What was read.
        first: The side that the claim says is larger.
        second: The other side.
        evidence: The records.
    """

    contrast: Contrast
    first: Sample
    second: Sample
    evidence: Evidence

    @cached_property
    def values(self) -> Floats:
        """Effect of each seed (n,), positive in the direction of the claim; of an identity its errors.

        NaN where a pair of runs says nothing: neither reached the target, or both lie on the floor or ceiling of the
        quantity.

        Raises:
            DataError: The quantity gives more or fewer numbers than there are seeds.
        """
        contrast, seeds = self.contrast, len(self.evidence.seeds)
        a: Any = self.first.values
        b: Any = self.second.values
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if contrast.effect is not None:
                effects = contrast.effect(a, b)
            elif b is None:
                effects = a
            elif contrast.scale == "log-ratio":
                effects = self._logarithm(a) - self._logarithm(b)
            else:
                effects = a - b
        effects = np.array(effects, dtype=np.float64)
        if effects.shape != (seeds,):
            place = defined_at(contrast.effect or contrast.quantity.read)
            raise DataError(
                f"{contrast.quantity.words or 'a quantity'}: gives numbers of shape {effects.shape} for {seeds} seeds: "
                f"return one number for each of evidence.seeds, NaN where there is none{f' ({place})' if place else ''}"
            )
        effects[self._neither | self._at_limits] = np.nan
        return effects

    def _logarithm(self, values: Any) -> Any:
        if isinstance(values, float):
            return math.log(values)
        return values if self.contrast.quantity.logs else np.log(values)

    @cached_property
    def _neither(self) -> NDArray[np.bool_]:
        return neither_arrived(self.first, self.second, len(self.evidence.seeds))

    @cached_property
    def _either(self) -> NDArray[np.bool_]:
        return one_arrived(self.first, self.second, len(self.evidence.seeds))

    @property
    def bounded(self) -> str:
        """``"at least"`` or ``"at most"`` where the effect is a bound, for runs of one side ended before the target."""
        if not self._either.any():
            return ""
        first, second = (
            bool((sample.arrivals.missed & self._either).any()) if sample.arrivals is not None else False
            for sample in (self.first, self.second)
        )
        return "about" if first and second else "at least" if first else "at most"

    @cached_property
    def _at_limits(self) -> NDArray[np.bool_]:
        limits = self.contrast.quantity.limits(self.evidence)
        return both_at_limits(self.first, self.second, len(self.evidence.seeds), limits)

    @cached_property
    def kept(self) -> Floats:
        """The effects that are numbers."""
        return self.values[np.isfinite(self.values)]

    @cached_property
    def effect(self) -> Estimate:
        """Mean effect over seeds, with its interval; of an identity its largest error."""
        contrast = self.contrast
        unit = contrast.quantity.unit if contrast.unit is None else contrast.unit
        if contrast.exact_within is not None:
            errors = np.abs(self.kept)
            if not len(errors):
                return replace(unmeasured(self.evidence.level, "error"), unit=unit)
            largest, smallest, n = float(errors.max()), float(errors.min()), len(errors)
            return Estimate(largest, smallest, largest, self.evidence.level, n, "largest of all seeds", "error", unit)
        if not len(self.kept):
            return replace(unmeasured(self.evidence.level, contrast.scale), unit=unit)
        found = interval(self.kept, scale=contrast.scale, level=self.evidence.level)
        return replace(found if contrast.each_above is None else span(self.kept), scale=contrast.scale, unit=unit)

    @property
    def missing(self) -> str:
        """A sentence on the seeds without a number; empty if there are none."""
        left = len(self.values) - len(self.kept)
        if not left:
            return ""
        neither, limits = int(self._neither.sum()), int(self._at_limits.sum())
        count = "all seeds" if left == len(self.values) else f"{left} of {len(self.values)} seeds"
        if neither == left:
            beyond = self.contrast.quantity.beyond
            both = f"the runs of both sides {beyond}" if beyond else "neither side reached the target"
            return f"In {count} {both}, so there is no number."
        if limits == left:
            return f"In {count} both sides lie on the floor or ceiling of the quantity, so there is no number."
        return f"In {count} there is no finite number."

    def margin(self, default: float) -> float:
        """Return the margin that judges; ``default`` is the study's own."""
        contrast = self.contrast
        own = (
            contrast.exact_within,
            contrast.equal_within,
            contrast.no_worse_than,
            contrast.each_above,
            contrast.margin,
        )
        return next((bound for bound in own if bound is not None), default)

    def judge(self, default: float) -> Decision:
        """Return the word and its p-value, by the contrast's rule; premises are the study's to judge.

        The p-value is corrected for the second look that an extended run takes.

        Args:
            default: The margin where the contrast has no rule of its own.
        """
        contrast = self.contrast
        if contrast.exact_within is not None:
            return exact(self.values, contrast.exact_within)
        if contrast.each_above is not None:
            return each_above(self.values, contrast.each_above, self.missing)
        if contrast.counted and len(self.kept) >= FEWEST_SEEDS and unusable(self.kept):
            return decide_count(float(self.kept.mean()), self.margin(default))
        if reason := self._nothing_to_judge():
            return Decision(Outcome.NOT_MEASURABLE, None, reason)
        options: dict[str, Any] = {"level": self.evidence.level, "scale": contrast.scale}
        if contrast.equal_within is not None:
            found = alike(self.kept, contrast.equal_within, **options)
        elif contrast.no_worse_than is not None:
            found = no_worse(self.kept, contrast.no_worse_than, **options)
        else:
            found = decide(self.kept, margin=self.margin(default), **options)
        if self.evidence.looks == 2 and found.p_value is not None:
            found = found._replace(p_value=two_looks(found.p_value))
        says_alike = found.outcome is (Outcome.NO_EFFECT if contrast.equal_within is None else Outcome.HOLDS)
        if says_alike and self._either.any():
            count = int(self._either.sum())
            runs = f"{count} run{'s' * (count != 1)} {contrast.quantity.beyond or 'ended before the target'}"
            return found._replace(outcome=Outcome.UNCLEAR, why=f"{runs}, so the effect is only bounded")
        return found

    def _nothing_to_judge(self) -> str:
        """Say why the numbers allow no word; empty if they do."""
        few = len(self.kept) < FEWEST_SEEDS
        return (few and self.missing.rstrip(".")) or unusable(self.kept)


def unmeasured(level: float, scale: str) -> Estimate:
    """Return the estimate of something that no seed allows to estimate."""
    return Estimate(math.nan, -math.inf, math.inf, level, 0, "not measured", scale)
