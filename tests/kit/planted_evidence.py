"""Evidence with known truths, to see whether judges find them."""

import numpy as np
import polars as pl

from normscope.studies import Evidence

SCHEMA = {"arm": pl.String, "seed": pl.Int64, "step": pl.Int64, "probe": pl.String, "site": pl.String,
          "name": pl.String, "value": pl.Float64, "unit": pl.String, "cell": pl.String}  # fmt: skip


class Plant:
    """Collects records and makes evidence of them."""

    def __init__(self, settings, seeds=10):
        self.settings, self.seeds, self.rows = settings, tuple(range(seeds)), []

    def add(self, arm, seed, name, value, *, step=0, probe="training", site="", **point):
        row = {"arm": arm, "seed": seed, "step": step, "probe": probe, "site": site, "name": name}
        self.rows.append(row | {"value": float(value), "unit": "1", "cell": "c"} | point)

    def reach(self, arm, seed, target_step, horizon, **point):
        """An accuracy that jumps from 0 to 1, so that a running mean over 5 steps passes 80 % at a known step."""
        for step in range(horizon):
            # The mean of 5 values is 0.8 once four of them are 1: three steps after the jump.
            self.add(arm, seed, "accuracy", step >= target_step - 4, step=step, **point)

    def chance(self, value=0.1):
        """The training accuracy before any update, of which floors are made; of no arm of the study."""
        self.add("before training", self.seeds[0], "accuracy", value, step=-1)

    def end(
        self, arm, seed, test=0.9, *, step=100, train=None, val=None, val_loss=0.5, test_loss=0.5, diverged=0, **point
    ):
        """What a run leaves at its end: accuracies, losses, and whether it diverged."""
        values = {"test_accuracy": test, "val_accuracy": test if val is None else val, "val_loss": val_loss}
        values |= {"test_loss": test_loss, "diverged": diverged}
        for name, value in values.items():
            self.add(arm, seed, name, value, step=step, **point)
        for name, value in {"loss": 0.1, "accuracy": test if train is None else train}.items():
            self.add(arm, seed, name, value, step=step - 1, **point)

    def evidence(self, level=0.95):
        points = {key for row in self.rows for key in row} - set(SCHEMA)
        sample = {key: next(row[key] for row in self.rows if key in row) for key in points}
        kinds = {key: pl.String if isinstance(value, str) else pl.Float64 for key, value in sample.items()}
        rows = [{**dict.fromkeys(points), **row} for row in self.rows]
        rows = [{k: float(v) if isinstance(v, int) and k in points else v for k, v in row.items()} for row in rows]
        return Evidence(pl.DataFrame(rows, schema=SCHEMA | kinds), self.settings, self.seeds, level)


def jitter(seed, scale, salt=0):
    """A reproducible wobble of a seed."""
    return scale * float(np.random.default_rng([seed, salt]).standard_normal())


def words_by_name(verdict):
    """The word of every contrast, the headline included, by its name."""
    return {each.name: each.outcome.value for each in (verdict, *verdict.parts)}


def parts(verdict, words):
    """The parts of a verdict whose endpoint or claim has some words in it; there must be one."""
    found = [part for part in verdict.parts if words in part.endpoint or words in part.claim]
    assert found, f"no part with {words!r}: {[part.endpoint for part in verdict.parts]}"
    return found


def outcomes(verdict, words):
    """Their outcomes, as a set of words."""
    return {part.outcome.value for part in parts(verdict, words)}


def part(verdict, name):
    """The part of a verdict with a name, exactly."""
    return next(each for each in verdict.parts if each.name == name)
