"""Plateaus of the curvature along the gradient, from the records of a descent, against the edge of stability."""

from typing import Any

import numpy as np
import polars as pl

from normscope.stats import slope_per_seed
from normscope.studies.evidence import Evidence

#: A run whose curvature grows by this factor within its last part is still on its way to a plateau.
RISE = 1.2


def _rates(evidence: Evidence, lr: float | None) -> list[float]:
    return list(evidence.settings["lrs"]) if lr is None else [lr]


def plateau(evidence: Evidence, arm: str, lr: float, name: str = "sharpness") -> np.ndarray:
    """Return per seed the geometric mean of a curvature over the last part of a run; NaN where there is no plateau."""
    settings = evidence.settings
    where: dict[str, Any] = {"probe": "descent", "arm": arm, "lr": lr}
    begin, end = settings["plateau"] * settings["steps"], float(settings["steps"])
    mean: np.ndarray = np.exp(evidence.mean_log(_between(evidence.select(name=name, **where), begin, end + 1)))
    curvature = evidence.select(name="sharpness", **where)
    third = (end - begin) / 3
    first, last = (
        np.exp(evidence.mean_log(_between(curvature, *span)))
        for span in ((begin, begin + third), (end - third, end + 1))
    )
    rising = (last > RISE * first) & (last < 2 / lr)
    return np.where(rising | (evidence.last("diverged", **where) > 0), np.nan, mean)


def _between(frame: pl.DataFrame, begin: float, end: float) -> pl.DataFrame:
    return frame.filter((pl.col("step") >= begin) & (pl.col("step") < end))


def relative(evidence: Evidence, arm: str, lr: float | None = None) -> np.ndarray:
    """Return the plateau over that of theory, at one learning rate or the mean over all."""
    relative: np.ndarray = np.mean([plateau(evidence, arm, rate) * rate / 2 for rate in _rates(evidence, lr)], 0)
    return relative


def share_at_edge(evidence: Evidence, arm: str, lr: float | None = None) -> np.ndarray:
    """Return the share of readings within a tenth of the edge, at one learning rate or the mean over all."""
    near = [
        evidence.per_seed(
            evidence.select(probe="descent", name="sharpness", arm=arm, lr=rate),
            ((pl.col("value") * rate / 2 - 1).abs() < 0.1).mean(),
        )
        for rate in _rates(evidence, lr)
    ]
    share: np.ndarray = np.mean(near, 0)
    return share


def slope(evidence: Evidence, arm: str, name: str) -> np.ndarray:
    """Return the slope of the log plateau on the log learning rate; NaN for a seed without all plateaus."""
    rates = evidence.settings["lrs"]
    logs = np.log([plateau(evidence, arm, rate, name) for rate in rates]).T
    slopes, whole = np.full(len(logs), np.nan), np.isfinite(logs).all(1)
    if whole.any():
        slopes[whole] = slope_per_seed(np.log(rates), logs[whole])
    return slopes
