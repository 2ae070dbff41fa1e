"""A contrast with its numbers seed by seed, without the records: what a later rule needs to judge it again."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from normscope.records import Verdict
from normscope.studies import Contrast, Evidence, Quantity
from normscope.studies.evidence import Arrivals, Floats
from normscope.studies.judging import NO_NUMBER, AbstractJudge
from normscope.studies.sample import Sample
from normscope.studies.wording import Wording

#: The rules by which a contrast may be judged; the number behind one is its bound.
RULES = ("margin", "equal_within", "no_worse_than", "each_above", "exact_within")


#: Name of the contrasts that say whether an arm learns; most other contrasts have them among their premises.
LEARNING = "learning"


@dataclass(frozen=True, slots=True)
class KeptSide:
    """One side of a contrast.

    Attributes:
        values: A number a seed (n,), in the order of the seeds; empty where the side is a number of a theory.
        theory: That number; None where it is measured.
        missed: By seed, whether its run ended before the target, of times that may be censored; empty for all else.
        horizon: Steps of such a run; 0 for all else.
    """

    values: tuple[float, ...]
    theory: float | None
    missed: tuple[bool, ...]
    horizon: float


@dataclass(frozen=True, slots=True)
class KeptContrast:
    """A contrast with its numbers seed by seed.

    The attributes are those of ``studies.Contrast`` and its ``Quantity``, with arms and conditions in words.

    Attributes:
        name: By which texts refer to it; may be empty.
        claim: The claim in a sentence.
        endpoint: What was measured, in words.
        quantity: What the numbers of the sides are, in words.
        logs: Whether those are natural logarithms.
        beyond: What a run does whose number is only a bound; may be empty.
        unit: Unit of the effect.
        scale: What the effect is.
        says: The finding as a clause, with ``{effect}`` in it; may be empty.
        comparative: Two words, for an effect in the direction of the claim and against it; or none.
        conditions: What was fixed, in words, by the name of what varies.
        reason: The numbers behind the word, in a sentence.
        rule: One of ``RULES``.
        bound: The bound of that rule, fixed before the run.
        margin_reason: Why it is that one, in a line.
        counted: Whether the numbers are counts.
        limits: Floor and ceiling of the quantity; infinite where there is none.
        labels: What both sides are called in a sentence.
        first: The side that the claim says is larger.
        second: The other side; None if the quantity itself is the effect.
        effects: The effect of each seed, where it is neither a difference nor a log-ratio of the sides; empty if it is.
        learn: Names of the arms that must learn.
        premises: What else must be the case.
    """

    name: str
    claim: str
    endpoint: str
    quantity: str
    logs: bool
    beyond: str
    unit: str
    scale: str
    says: str
    comparative: tuple[str, ...]
    conditions: Mapping[str, str]
    reason: str
    rule: str
    bound: float
    margin_reason: str
    counted: bool
    limits: tuple[float, ...]
    labels: tuple[str, ...]
    first: KeptSide
    second: KeptSide | None
    effects: tuple[float, ...]
    learn: tuple[str, ...]
    premises: "tuple[KeptContrast, ...]"


@np.errstate(**NO_NUMBER)
def keep(contrast: Contrast, evidence: Evidence, judge: AbstractJudge, *, primary: bool = False) -> KeptContrast:
    """Return a contrast with the numbers that it reads.

    Args:
        contrast: What is judged.
        evidence: The records.
        judge: The question or study that judges it.
        primary: Whether it is the headline.
    """
    found, words = judge.verdict_of(contrast, evidence, primary=primary), judge.wording
    reading = contrast.read(evidence)
    sides = (reading.first.values, reading.second.values)
    rule = next((rule for rule in RULES[1:] if getattr(contrast, rule) is not None), RULES[0])
    missing = reading.missing if len(reading.kept) else ""
    return KeptContrast(
        name=contrast.name,
        claim=found.claim,
        endpoint=found.endpoint,
        quantity=contrast.quantity.words,
        logs=contrast.quantity.logs,
        beyond=contrast.quantity.beyond,
        unit=found.effect.unit,
        scale=contrast.scale,
        says=contrast.says if found.finding == words.finding(reading) else found.finding,
        comparative=contrast.comparative or (),
        conditions={each.name: each.value for each in words.conditions_of(contrast) if each.name != "arms"},
        reason=found.reason.removesuffix(missing).rstrip(),
        rule=rule,
        bound=found.margin,
        margin_reason=found.margin_reason,
        counted=contrast.counted,
        limits=contrast.quantity.limits(evidence),
        labels=words.sides(contrast),
        first=_side(reading.first),
        second=None if contrast.second is None else _side(reading.second),
        effects=() if contrast.effect is None else _floats(contrast.effect(*sides)),
        learn=tuple(str(premise.first) for premise in contrast.premises if premise.name == LEARNING),
        premises=tuple(keep(each, evidence, judge) for each in contrast.premises if each.name != LEARNING),
    )


def _side(sample: Sample) -> KeptSide:
    values, arrivals = sample.values, sample.arrivals
    measured = _floats(values) if isinstance(values, np.ndarray) else ()
    theory = values if isinstance(values, float) else None
    missed = () if arrivals is None else tuple(map(bool, arrivals.missed))
    return KeptSide(measured, theory, missed, 0.0 if arrivals is None else arrivals.horizon)


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values))


class KeptJudge(AbstractJudge):
    """Judges contrasts that were kept, by the rules of this version."""

    CODE = "kept"
    CLAIM = ""
    SOURCES = ()
    MARGIN = 0.0  # each contrast has its bound

    @property
    def wording(self) -> Wording:
        """Words for arms and conditions, which stand in the contrasts already."""
        return Wording()


def verdict_of(
    kept: KeptContrast,
    learning: Mapping[str, KeptContrast],
    seeds: tuple[int, ...],
    level: float,
    *,
    primary: bool = False,
) -> Verdict:
    """Judge a contrast that was kept.

    Args:
        kept: The contrast.
        learning: By the name of an arm, the contrast that says whether it learns.
        seeds: The replicates, in the order of its numbers.
        level: Confidence level of the intervals.
        primary: Whether it is the headline.
    """
    evidence = Evidence(pl.DataFrame(), {}, seeds, level, "")
    return KeptJudge().verdict_of(contrast_of(kept, learning), evidence, primary=primary)


def contrast_of(kept: KeptContrast, learning: Mapping[str, KeptContrast]) -> Contrast:
    """Return the contrast that reads the numbers that were kept, whatever evidence it is given."""
    premises = (*(learning[arm] for arm in kept.learn), *kept.premises)
    sides = {"first": kept.first, "second": kept.second}
    at = {name: _point(side, name) for name, side in sides.items()}

    def read(_: Evidence, arm: str) -> Floats | Arrivals:
        side = sides[arm]
        assert side is not None
        values = np.array(side.values, dtype=np.float64)
        return Arrivals(values, np.array(side.missed), side.horizon) if side.missed else values

    low, high = kept.limits
    quantity = Quantity(
        kept.quantity,
        read,
        logs=kept.logs,
        beyond=kept.beyond,
        censored=bool(kept.first.missed),
        floor=lambda _: low,
        ceiling=None if math.isinf(high) else high,
    )
    effects = np.array(kept.effects, dtype=np.float64)
    word, against = kept.comparative or ("", "")
    first, second = kept.labels
    return Contrast(
        quantity,
        at["first"],
        at["second"],
        conditions=kept.conditions,
        scale=kept.scale,
        effect=(lambda *_: effects) if kept.effects else None,
        unit=kept.unit,
        claim=kept.claim,
        name=kept.name,
        endpoint=kept.endpoint,
        says=kept.says,
        comparative=(word, against) if kept.comparative else None,
        reason=kept.reason,
        labels=(first, second),
        margin_reason=kept.margin_reason,
        counted=kept.counted,
        premises=tuple(contrast_of(each, learning) for each in premises),
        **{kept.rule: kept.bound},  # type: ignore[arg-type]
    )


def _point(side: KeptSide | None, name: str) -> str | float | None:
    """Return a side as a contrast names it: a theory by its number, what was measured by its place."""
    if side is None:
        return None
    return name if side.theory is None else side.theory
