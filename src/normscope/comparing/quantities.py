"""Quantities that several questions read: losses over a run, and whether an arm learns at all.

A run that diverged counts from then on with the loss that it began with: it has learnt nothing.
"""

import math
from typing import Any

import numpy as np
import polars as pl

from normscope.studies import Evidence, Quantity
from normscope.studies.evidence import Floats

#: Share of the fall of the arm that learns most, at or below which an arm does not learn.
LEARNS = 0.1
LEARNS_REASON = "an arm that comes a tenth as far as the best arm shows nothing of how networks train"
#: What the axis of a loss says after its title: a loss of the user's own may be of any unit.
UNIT_OF_LOSS = "in the units of the set-up's loss"
_LAST = 0.1  # share of the steps whose mean is the loss at the end
_LEAST_FALL = 0.02  # of the first loss: less than this is no fall for any arm


def loss_curves(evidence: Evidence, **where: Any) -> Floats:
    """Return the training loss (seeds, steps) of an arm, with the first loss where a run had diverged.

    Args:
        evidence: The records.
        where: Arm and point.

    Returns:
        NaN where a seed has no records at all, or its first loss is no finite number.
    """
    steps = int(evidence.settings["steps"])
    found = np.full((len(evidence.seeds), steps), np.nan)
    curves = evidence.curves(evidence.select(probe="training", name="loss", **where))
    for row, seed in zip(found, evidence.seeds, strict=True):
        if seed in curves and math.isfinite(curves[seed][1][0]):
            at, values = curves[seed]
            row[:] = np.inf  # until a value is there
            row[at.astype(int)] = values
            row[~np.isfinite(row)] = values[0]
            ended = np.flatnonzero(~np.isfinite(values))
            if len(ended):
                row[int(at[ended[0]]) :] = values[0]
    return found


def last_steps(evidence: Evidence) -> int:
    """Return how many steps the loss at the end is the mean of: a tenth of them, at least five."""
    steps = int(evidence.settings["steps"])
    return min(steps, max(5, math.ceil(_LAST * steps)))


def end_loss() -> Quantity:
    """Return the mean training loss of the last tenth of the steps."""

    def read(evidence: Evidence, **where: Any) -> Floats:
        return np.asarray(loss_curves(evidence, **where)[:, -last_steps(evidence) :].mean(axis=1))

    return Quantity("training loss of the last tenth of the steps", read, record=("training", "loss"))


def mean_loss() -> Quantity:
    """Return the mean training loss over all steps: the area under the curve, over its length."""

    def read(evidence: Evidence, **where: Any) -> Floats:
        return np.asarray(loss_curves(evidence, **where).mean(axis=1))

    return Quantity("training loss, mean over all steps", read, record=("training", "loss"))


def falls(evidence: Evidence, **where: Any) -> Floats:
    """Return by how much the training loss of an arm falls from the first step to the last tenth, per seed."""
    curves = loss_curves(evidence, **where)
    return np.asarray(curves[:, 0] - curves[:, -last_steps(evidence) :].mean(axis=1))


def fall() -> Quantity:
    """Return the fall of an arm's training loss, as a share of the mean fall of the arm that falls most."""

    def read(evidence: Evidence, **where: Any) -> Floats:
        point = {key: value for key, value in where.items() if key != "arm"}
        present = evidence.select(**point)["arm"].unique().to_list()
        found = {arm: falls(evidence, arm=arm, **point) for arm in present}
        means = [float(kept.mean()) for each in found.values() if len(kept := each[np.isfinite(each)])]
        firsts = evidence.select(probe="training", name="loss", **point).filter(pl.col("step") == 0)["value"].abs()
        first = firsts.mean()
        least = _LEAST_FALL * float(first) if isinstance(first, float) and math.isfinite(first) else 0.0
        own, largest = falls(evidence, **where), max([least, *means])
        return np.asarray(own / largest) if largest > 0 else np.sign(own)  # a loss that begins at 0 has no share

    return Quantity("fall of the training loss, as a share of the largest fall", read, unit="%")


def not_read(evidence: Evidence, *probes: str) -> str:
    """Say why probes tell nothing of the arms, in a clause; empty if each was read in two arms at least.

    Args:
        evidence: The records.
        probes: Their codes.
    """
    for probe in probes:
        if probe not in evidence.settings["readings"]:
            return f"the probe {probe} was left out to keep the budget"
        arms = evidence.select(probe=probe, rate=1.0)["arm"].unique().to_list()
        if len(arms) < 2:
            words = [str(evidence.settings["arms"].get(arm, arm)) for arm in arms]
            return f"the probe {probe} read nothing{f' but {words[0]}' if words else ''}"
    return ""


def read_in(evidence: Evidence, probe: str, *arms: str) -> bool:
    """Return whether a probe was read in all of some arms; in some arms that stand beside the others none is.

    Args:
        evidence: The records.
        probe: Its code.
        arms: The arms.
    """
    read = set(evidence.select(probe=probe, rate=1.0)["arm"].unique().to_list())
    return read.issuperset(arms)


def middle_log(name: str, words: str, *, probe: str) -> Quantity:
    """Return the logarithm of the median over a run's readings, of a quantity that may be infinite.

    An infinite reading is larger than all others, and the median is a number as long as fewer than half are infinite.

    Args:
        name: Name of the records.
        words: What it is.
        probe: Their probe.
    """

    def read(evidence: Evidence, **where: Any) -> Floats:
        found = evidence.select(probe=probe, name=name, **where)
        return middle_logs(evidence, found)

    return Quantity(words, read, logs=True, record=(probe, name))


def middle_logs(evidence: Evidence, frame: pl.DataFrame) -> Floats:
    """Return per seed the median logarithm of the positive values, infinities among them; NaN where there is none."""
    kept = frame.filter(pl.col("value").is_not_nan() & (pl.col("value") > 0))
    return evidence.per_seed(kept, pl.col("value").log().median())
