"""Question 6: how far can the learning rate go?"""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from normscope.comparing.ends import loss_margin
from normscope.comparing.quantities import LEARNS, LEARNS_REASON, UNIT_OF_LOSS, end_loss, falls
from normscope.comparing.question import AbstractQuestion, Pair
from normscope.plots import Figure, Table, curves
from normscope.records import Verdict
from normscope.stats import extent
from normscope.studies import Contrast, Evidence, Quantity
from normscope.studies.evidence import Arrivals, Floats

_HALF = 0.5  # of the largest fall: a higher standard for a rate that works


class RateRange(AbstractQuestion):
    """How far can the learning rate go?

    ## Question
    Up to which factor of its learning rate the network still learns, in each arm.

    ## Method
    A run learns at a rate if it does not diverge and its training loss falls by at least a tenth of the largest fall,
    that of the best arm at its best rate; also tried: by half of it. From the best rate of an arm and seed upward, the
    largest rate lies where the fall comes below that share, interpolated between two rates that were tried, on a
    logarithmic axis. Where the run still learns at the largest rate that was tried, the number is only a bound, and the
    answer says "at least" or "at most". A seed in which both arms do gives no number.

    ## Threats
    Between two rates that were tried the fall is taken to lie on a line; where a run works at the one and diverges at
    the other, the truth may lie anywhere between. A rate that works for a few steps may fail later. The largest rate
    that works is not the best one. The schedule of the set-up is scaled as a whole.
    """

    CODE = "rates"
    NUMBER = 6
    ASKS = "can the learning rate go further {first} than {second}?"
    CLAIM = "The learning rate can go further {first} than {second}."
    MARGIN = math.log(10) / 2  # each contrast has its own, from the rates that were tried
    BOTH_LEARN = False  # an arm may learn at other rates than the set-up's own

    def contrasts(self, evidence: Evidence, pair: Pair) -> Iterable[Contrast]:
        """Yield the largest rate at which one arm learns over that of the other, by a low standard and a higher one."""
        step, arms = _grid_step(evidence), (pair.first, pair.second)
        for share in (LEARNS, _HALF):
            yield Contrast(
                largest_rate(share),
                *arms,
                conditions={} if share == LEARNS else {"standard": "half of the largest fall of the loss"},
                scale="log-ratio",
                labels=pair.words,
                margin=step / 2,
                margin_reason=f"half a step between the rates that were tried, which are {math.exp(step):.3g} times "
                "apart: they tell no finer difference",
                comparative=("larger", "smaller"),
                says=f"the largest learning rate at which the network learns is {{effect}} {pair.words[0]} than "
                f"{pair.words[1]}",
                premises=tuple(
                    _learns_somewhere(arm, words, share) for arm, words in zip(arms, pair.words, strict=True)
                ),
            )

    def lacks(self, evidence: Evidence) -> str:
        """Say that several rates are needed, or larger ones."""
        if len(_rates(evidence)) < 2:
            return "one learning rate tells of no range: give several by `--rates`, such as 0.1,1,10"
        return _too_low(evidence, list(evidence.settings["arms"]))

    def judge(self, evidence: Evidence, pairs: Sequence[Pair]) -> Verdict:
        """Return the verdict; where both arms of the headline learn at every rate, it asks for larger ones."""
        verdict, head = super().judge(evidence, pairs), next(pair for pair in pairs if pair.headline)
        why = self.lacks(evidence) or _too_low(evidence, [head.first, head.second])
        return replace(verdict, why=why) if why else verdict

    def figures(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Figure]:
        """Draw the training loss at the end over the learning rate."""
        rates = _rates(evidence)
        if len(rates) < 2:
            return []
        rows = [
            {"arm": arm, "seed": seed, "rate": rate, "end_loss": float(loss)}
            for arm, rate in itertools.product(self.arms, rates)
            for seed, loss in zip(evidence.seeds, end_loss()(evidence, arm=arm, rate=rate), strict=True)
        ]
        return [
            curves(
                pl.DataFrame(rows),
                y="end_loss",
                x="rate",
                slug="end-loss-by-rate",
                title="Training loss at the end, by learning rate",
                x_title="Learning rate, times the set-up's own",
                y_title=f"Training loss, last tenth of the steps, {UNIT_OF_LOSS}",
                log=True,
                log_x=True,
                arms=list(self.arms),
                labels=self.arms,
                caption="A run that diverged counts from then on with the loss that it began with.",
            )
        ]

    def tables(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Table]:
        """Tabulate how many runs work at each rate."""
        rates = _rates(evidence)
        if len(rates) < 2:
            return []
        rows = []
        for arm, words in self.arms.items():
            counts = (_shares_of_fall(evidence, arm) >= LEARNS).sum(axis=1)
            rows.append((words, *(f"{count} of {len(evidence.seeds)}" for count in counts)))
        heads = ("Arm", *(f"Rate times {rate:g}" for rate in rates))
        caption = (
            f"A run learns if its loss falls by {LEARNS:.0%} of the largest fall at least, and it did not diverge."
        )
        return [Table("Runs that learn, by learning rate", heads, tuple(rows), caption)]


def largest_rate(share: float) -> Quantity:
    """Return the natural logarithm of the largest factor of the learning rate at which an arm learns, per seed.

    Args:
        share: Of the largest fall of the training loss, by which a run that learns must fall at least.
    """

    def read(evidence: Evidence, **where: Any) -> Arrivals:
        rates = _rates(evidence)
        seeds = _shares_of_fall(evidence, where["arm"]).T
        # An arm that learns at no rate has no largest one.
        found = [extent(rates, seed, share / seed.max()) if seed.max() >= share else None for seed in seeds]
        largest = np.array([math.nan if each is None else each.high for each in found])
        beyond = np.array([each is not None and each.above for each in found])
        return Arrivals(largest, beyond, math.log(rates[-1]))

    return Quantity(
        "largest factor of the learning rate at which the network learns",
        read,
        logs=True,
        beyond="could go beyond the largest rate that was tried",
    )


def _too_low(evidence: Evidence, arms: Sequence[str]) -> str:
    """Say that some arms learn at the largest rate in all seeds; empty if one of them does not."""
    found = [largest_rate(LEARNS).read(evidence, arm=arm) for arm in arms]
    if not all(isinstance(each, Arrivals) and each.missed.all() for each in found):
        return ""
    return (
        f"the network still learns at the largest learning rate that was tried, {_rates(evidence)[-1]:g} times the "
        f"set-up's own, in {'both' if len(arms) == 2 else 'all'} arms: give larger ones by `--rates`"
    )


def _learns_somewhere(arm: str, words: str, share: float) -> Contrast:
    """Return the contrast that an arm learns at its best rate."""

    def read(evidence: Evidence, **where: Any) -> Floats:
        return np.asarray(_shares_of_fall(evidence, where["arm"]).max(axis=0))

    return Contrast(
        Quantity("fall of the training loss at the best rate, as a share of the largest fall", read, unit="%"),
        arm,
        scale="value",
        claim=f"The network {words} learns at one of the learning rates.",
        says="at the best of them its loss falls by {effect} of the largest fall",
        each_above=share,
        margin_reason=LEARNS_REASON if share == LEARNS else "half of what the best arm reaches",
    )


def _shares_of_fall(evidence: Evidence, arm: str) -> Floats:
    """Return the fall of an arm's loss (rates, seeds) as a share of the largest mean fall over arms and rates.

    0 where a run diverged, its loss rose, or it has no records.
    """
    evidence = replace(evidence, frame=evidence.select(probe="training"))
    rates, arms = _rates(evidence), list(evidence.settings["arms"])
    falling = {
        each: np.array([_fall_if_finished(evidence, arm=each, rate=rate) for rate in rates]) for each in {*arms, arm}
    }
    # A fall too small for any arm to have learnt is no measure of the others.
    largest = max(loss_margin(evidence, arms[0]), *(float(found.mean(axis=1).max()) for found in falling.values()))
    return falling[arm] / largest if largest > 0 else falling[arm]


def _fall_if_finished(evidence: Evidence, **where: Any) -> Floats:
    found = np.maximum(np.nan_to_num(falls(evidence, **where)), 0.0)
    return np.where(evidence.last("diverged", **where) > 0, 0.0, found)


def _rates(evidence: Evidence) -> list[float]:
    return sorted(float(rate) for rate in evidence.settings["rates"])


def _grid_step(evidence: Evidence) -> float:
    """Return the logarithm of the widest step between two rates that were tried; of ten times where there is one."""
    steps = np.diff(np.log(_rates(evidence)))
    return float(steps.max()) if len(steps) else math.log(10)
