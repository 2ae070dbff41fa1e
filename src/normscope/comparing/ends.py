"""Quantities at the end of a run, and how they are tabulated: several questions share them.

A run that ended early has no number: what a probe saw of it before is not how it ended.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from normscope.plots import Table
from normscope.records.answers import capital
from normscope.studies import Evidence, Quantity
from normscope.studies.evidence import Floats

#: Share of the loss that training begins with, below which two losses are alike.
ALIKE = 0.02
ALIKE_REASON = "2 % of the loss that training begins with, which is also the least that counts as learning"
#: Where a comparison takes its numbers but for those of several learning rates: at the set-up's own.
OWN_RATE: dict[str, Any] = {"rate": 1.0}


def at_end(name: str, words: str, *, probe: str, logs: bool = False, unit: str = "") -> Quantity:
    """Return the last values of a record, mean over the sites; their logarithm where ``logs``.

    Args:
        name: Name of the records.
        words: What it is.
        probe: Their probe.
        logs: Whether the logarithm is taken; a value that is not positive has none.
        unit: Unit of a difference of two of the numbers.
    """

    def read(evidence: Evidence, **where: Any) -> Floats:
        values = evidence.per_seed(last_records(evidence, probe, name, **where))
        if not logs:
            return values
        return np.asarray(np.log(np.where(values > 0, values, np.nan)))

    return Quantity(words, read, logs=logs, record=(probe, name), unit=unit)


def last_records(evidence: Evidence, probe: str, name: str, **where: Any) -> pl.DataFrame:
    """Return the records of a name at the last step at which any run has them; ``where`` gives arm and point."""
    everywhere, found = (evidence.select(probe=probe, name=name, **at) for at in ({}, where))
    return found.filter(pl.col("step") == everywhere["step"].max()) if found.height else found


def gap() -> Quantity:
    """Return by how much the loss is higher in evaluation than in training, at the end."""
    ends = [at_end(name, name, probe="gap") for name in ("eval", "train")]

    def read(evidence: Evidence, **where: Any) -> Floats:
        evaluation, training = (_finite(end(evidence, **where)) for end in ends)
        return np.asarray(evaluation - training)

    return Quantity("rise of the loss from training to evaluation", read)


def share_of_gap(words: str, *causes: str) -> Quantity:
    """Return by how much the loss rises from training to evaluation through some causes; 0 where none plays a part.

    Args:
        words: The causes in words.
        causes: Names of the shares, as of ``evidence.gap``.
    """
    ends = [at_end(cause, cause, probe="gap") for cause in causes]

    def read(evidence: Evidence, **where: Any) -> Floats:
        # A cause that plays no part in an arm has no record there; a run without any gap has no number at all.
        shares = np.array([np.nan_to_num(_finite(end(evidence, **where))) for end in ends])
        return np.where(np.isnan(gap()(evidence, **where)), np.nan, shares.sum(axis=0))

    return Quantity(f"rise of the loss through {words}", read)


def _finite(values: Floats) -> Floats:
    return np.where(np.isfinite(values), values, np.nan)


def arms_table(
    title: str, quantities: Sequence[Quantity], evidence: Evidence, arms: Mapping[str, str], caption: str
) -> Table:
    """Tabulate quantities at the set-up's own learning rate, a row each, a column an arm.

    Args:
        title: What the table holds.
        quantities: What stands in the rows.
        evidence: The records.
        arms: Words for the arms that are shown, by name.
        caption: How to read it.
    """
    rows = tuple(
        (capital(each.words), *(each.text(evidence, arm=arm, **OWN_RATE) for arm in arms)) for each in quantities
    )
    return Table(title, ("", *map(capital, arms.values())), rows, caption)


def loss_margin(evidence: Evidence, arm: str) -> float:
    """Return the smallest difference of two losses that matters: a share of the loss that an arm begins with."""
    first = evidence.select(probe="training", name="loss", arm=arm, step=0, **OWN_RATE)["value"].abs().mean()
    return ALIKE * float(first) if isinstance(first, float) and math.isfinite(first) else 0.0
