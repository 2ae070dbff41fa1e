"""What is measured on one arm under one condition: one number a seed."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from normscope.plots import number
from normscope.stats import restricted_mean
from normscope.studies.evidence import Arrivals, Evidence, Floats, typical

#: What a quantity's ``read`` returns: numbers, or steps of which some are censored.
Readings = Floats | Arrivals


@dataclass(frozen=True)
class Quantity:
    """One number a seed, read from the records of one arm at one point of the grid.

    Attributes:
        words: What it is, in words that can begin a sentence: ``"test accuracy"``.
        read: Called with (evidence, arm=..., and the values of the point); returns an array (n,) in the order of
            ``evidence.seeds``, NaN where a seed has no number, or ``Arrivals``.
        logs: Whether the numbers are natural logarithms. Their difference is then a log-ratio, and they are written as
            geometric means.
        record: (probe, name) of the records that a figure of it draws over steps; empty if there is nothing to draw.
        reference: Horizontal lines of that figure, by their label.
        censored: Whether ``read`` returns ``Arrivals``.
        beyond: What a run does whose number is only a bound, where it is not that it never reached its target: words
            behind "2 of 5 runs" that fit one run as well.
        unit: Unit of a difference of two of the numbers, in words; ``"points"`` and ``"%"`` are hundredths.
        floor: Called with the evidence: at or below it a run has learnt nothing. Where both sides of a contrast do, the
            pair says nothing. None if there is no floor.
        ceiling: At or above it nothing is left to gain, and the same holds. None if there is no ceiling.
        held_out: Whether it is measured on data that each seed splits off anew; intervals then speak of this data set.
    """

    words: str
    read: Callable[..., Readings]
    logs: bool = False
    record: tuple[str, str] = ("", "")
    reference: Mapping[str, float] = field(default_factory=dict)
    censored: bool = False
    beyond: str = ""
    unit: str = ""
    floor: Callable[[Evidence], float] | None = None
    ceiling: float | None = None
    held_out: bool = False

    def limits(self, evidence: Evidence) -> tuple[float, float]:
        """Return floor and ceiling; infinite where there is none."""
        floor = -math.inf if self.floor is None else self.floor(evidence)
        return floor, math.inf if self.ceiling is None else self.ceiling

    def __call__(self, evidence: Evidence, **where: Any) -> Floats:
        """Return the number of each seed; steps that were never reached count as the horizon."""
        found = self.read(evidence, **where)
        return found.steps if isinstance(found, Arrivals) else found

    def typical(self, values: Floats | float) -> str:
        """Write the mean over seeds (the geometric mean of logarithms), or a number that stands for a theory."""
        return number(values) if isinstance(values, float) else typical(values, logs=self.logs)

    def text(self, evidence: Evidence, **where: Any) -> str:
        """Write the quantity for a cell of a table: a mean, or a restricted mean with its interval and [never]."""
        found = self.read(evidence, **where)
        if not isinstance(found, Arrivals):
            return self.typical(found)
        mean = restricted_mean(found.steps, ~found.missed, found.horizon, level=evidence.level)
        never = int(found.missed.sum())
        said = f"{mean.point:.0f} ({mean.low:.0f} to {mean.high:.0f})"
        return f"{said} [{never}]" if never else said


def steps_to(share: float, window: int = 5) -> Quantity:
    """Steps until the running training accuracy has come a share of the way from chance to the best plateau.

    The plateau is that of the best arm at the same point of the grid, whatever its learning rate, so the target follows
    the data: no arm is asked for an accuracy that none reaches. Censored at the end of a run.

    Args:
        share: Share of the way, in (0, 1).
        window: Steps of the running mean.
    """
    goal = f"{100 * share:g} %"
    return Quantity(
        f"steps to {goal} of the way to the best training accuracy",
        lambda evidence, **where: evidence.arrivals(evidence.target(share, **where), window=window, **where),
        record=("training", "accuracy"),
        censored=True,
    )


def accuracy(name: str = "test_accuracy") -> Quantity:
    """Accuracy at the end of training, in points where two are compared; a run that diverged has none right."""
    return Quantity(
        f"{name.replace('_', ' ')} at the end",
        lambda evidence, **where: evidence.accuracy(name=name, **where),
        unit="points",
        floor=lambda evidence: evidence.floor,
        ceiling=0.9999,
        held_out=name.startswith(("test", "val")),
    )


def final(name: str, words: str = "", window: int = 20) -> Quantity:
    """Mean of the last ``window`` training records of a name (``"loss"``, ``"accuracy"``)."""
    return Quantity(
        words or f"training {name} of the last {window} steps",
        lambda evidence, **where: evidence.final(name, window=window, **where),
        record=("training", name),
    )


def last(name: str, words: str = "", *, probe: str = "training", logs: bool = False) -> Quantity:
    """Last record of a name; its logarithm where ``logs``."""

    def read(evidence: Evidence, **where: Any) -> Floats:
        values = evidence.last(name, probe=probe, **where)
        return _logarithms(values) if logs else values

    return Quantity(words or name.replace("_", " "), read, logs=logs, record=(probe, name))


def mean(name: str, words: str = "", *, probe: str, before: float | None = None) -> Quantity:
    """Mean of the records of a name over steps and sites.

    Args:
        name: Name of the records.
        words: What it is; the name if left out.
        probe: Their probe.
        before: Only steps below this one.
    """
    return Quantity(
        words or name.replace("_", " "),
        lambda evidence, **where: evidence.per_seed(evidence.select(probe=probe, name=name, before=before, **where)),
        record=(probe, name),
    )


def mean_log(name: str, words: str = "", *, probe: str, before: float | None = None) -> Quantity:
    """Mean logarithm of the records of a name over steps and sites; values that have none are left out.

    Args:
        name: Name of the records.
        words: What it is; the name if left out.
        probe: Their probe.
        before: Only steps below this one.
    """
    return Quantity(
        words or name.replace("_", " "),
        lambda evidence, **where: evidence.mean_log(evidence.select(probe=probe, name=name, before=before, **where)),
        logs=True,
        record=(probe, name),
    )


@dataclass(frozen=True)
class Best:
    """The value of a point at which an arm does best: a condition under which each arm has a value of its own.

    Attributes:
        over: Which value of the point is chosen, such as ``"lr"``.
        by: The quantity that decides. None for the validation loss at the end.
        most: Whether the best is the largest mean over seeds; if not, the smallest geometric mean.

    A value at which the mean is not finite (a run diverged) is ruled out; if that leaves nothing, the smallest value
    is taken, and NaN if there is none.
    """

    over: str
    by: Quantity | None = None
    most: bool = False

    def of(self, evidence: Evidence, **where: Any) -> Any:
        """Return the best value of one arm; ``where`` has its arm and the rest of the condition."""
        quantity = self.by or last("val_loss")
        choices: list[Any] = sorted(evidence.select(**where)[self.over].unique().to_list())
        scores = []
        for choice in choices:
            values = quantity(evidence, **where, **{self.over: choice})
            mean = float((values if self.most or quantity.logs else _logarithms(values)).mean())
            if math.isfinite(mean):
                scores.append((-mean if self.most else mean, choice))
        return min(scores)[1] if scores else next(iter(choices), math.nan)


def _logarithms(values: Floats) -> Floats:
    """Return natural logarithms; of numbers that have none, infinities and NaN, which no estimate takes."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(values), dtype=np.float64)
