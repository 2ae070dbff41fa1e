"""Up to which learning rate a model of text trains: its gain over the frequencies of characters, by rate."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normscope.plots import Figure, Table, curves
from normscope.records.answers import capital
from normscope.stats import extent
from normscope.studies.evidence import Arrivals, Evidence, Floats, typical
from normscope.studies.quantity import Best, Quantity

#: A rate is usable up to which a run keeps this share of the best gain of its arm.
SHARE = 0.8
#: Smaller gains are those of a model that has learnt no more than the frequencies, in nats.
NOTHING = 0.05


def frequency_loss(labels: Tensor) -> float:
    """Return the loss of a model that knows only how frequent each label is: the entropy of ``labels``, in nats."""
    share = torch.bincount(labels.flatten()).double() / labels.numel()
    return float(-(share[share > 0] * share[share > 0].log()).sum())


def gains(evidence: Evidence, lr: float, **where: Any) -> Floats:
    """Return by how much the last training losses of each seed lie below the loss of the frequencies, 0 at least.

    A run that diverged has no gain. The loss of the frequencies is the record ``frequency_loss`` of the run.
    """
    loss = evidence.final("loss", lr=lr, **where)
    frequencies = evidence.last("frequency_loss", probe="text", lr=lr, **where)
    lost = evidence.last("diverged", lr=lr, **where) > 0
    return np.where(lost | ~np.isfinite(loss), 0.0, np.maximum(frequencies - loss, 0.0))


def _rates(evidence: Evidence, **where: Any) -> list[float]:
    """Return the learning rates at which an arm was run, in order."""
    rates = evidence.select(probe="training", name="loss", **where)["lr"].unique().drop_nulls()
    return [float(lr) for lr in rates.sort()]


def largest(evidence: Evidence, **where: Any) -> Arrivals:
    """Return per seed the logarithm of the largest usable rate; missed where that of the grid is usable.

    NaN where an arm learns at no rate, or was run at fewer than two.
    """
    rates = _rates(evidence, **where)
    if len(rates) < 2:
        nothing = np.full(len(evidence.seeds), np.nan)
        return Arrivals(nothing, np.zeros(len(nothing), dtype=bool), math.nan)
    found = np.array([np.nan_to_num(gains(evidence, lr, **where)) for lr in rates])
    ends = [extent(rates, seed, SHARE) for seed in found.T]
    learnt = found.max(0) > NOTHING
    highest = np.where(learnt, [end.high for end in ends], np.nan)
    return Arrivals(highest, learnt & np.array([end.above for end in ends]), math.log(rates[-1]))


#: Logarithm of the largest rate up to which the gain is at least ``SHARE`` of the arm's best, interpolated.
LARGEST = Quantity(
    "largest usable learning rate",
    largest,
    logs=True,
    beyond="trained at the largest rate of the grid",
)


def loss_by_rate_figure(evidence: Evidence, arms: Mapping[str, str], **where: Any) -> Figure:
    """Draw the held-out loss over the learning rate; runs that diverged are left out.

    Args:
        evidence: The records.
        arms: Words for the arms.
        where: The rest of the condition.
    """
    said = []
    for arm, words in arms.items():
        rates = _rates(evidence, arm=arm, **where)
        ends = (typical(evidence.last("test_loss", arm=arm, lr=lr, **where)) or "none" for lr in rates)
        said.append(f"{words}: " + ", ".join(f"{end} at {lr:g}" for lr, end in zip(rates, ends, strict=True)))
    return curves(
        evidence.select(probe="training", name="test_loss", arm=list(arms), **where),
        y="test_loss",
        x="lr",
        slug="loss-by-rate",
        title="Held-out loss at the end, by learning rate",
        x_title="Learning rate",
        y_title="Held-out loss (nats a character)",
        log_x=True,
        arms=list(arms),
        labels=dict(arms),
        caption=f"{capital('; '.join(said))}.",
    )


def largest_table(evidence: Evidence, arms: Mapping[str, str], **where: Any) -> Table:
    """Tabulate largest usable and own best rates, a row an arm.

    Args:
        evidence: The records.
        arms: Words for the arms.
        where: The rest of the condition.
    """
    rows = []
    for arm, words in arms.items():
        found = largest(evidence, arm=arm, **where)
        best = Best("lr").of(evidence, arm=arm, **where)
        usable = typical(found.steps, logs=True)
        rows.append((capital(words), f"{best:g}", usable, int(found.missed.sum())))
    columns = ("Arm", "Own best rate", "Largest usable rate", "Seeds in which the largest rate of the grid is usable")
    return Table("Learning rates", columns, tuple(rows), "Largest usable: geometric means over seeds.")
