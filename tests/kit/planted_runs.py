"""Evidence in the shape of a real run, with planted numbers: no cell is run."""

import dataclasses
import functools
import itertools
import zlib
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from kit.record_shapes import COLUMNS, read, steps_of
from normscope.studies import Evidence

SEEDS = 6


@functools.cache
def planted_run(slug, *, equal=False, spread=0.1, salt=0):
    """Return evidence of a study's quick preset: every record a real run has, with values around their typical ones.

    Training accuracies rise to almost 1 in the first third of a run; nothing diverges.

    Args:
        slug: The study.
        equal: Whether arms have the same numbers at the same point; if not, every arm has a level of its own.
        spread: Standard deviation, on the log scale, over seeds and steps.
        salt: Another number gives other numbers.
    """
    shape = read(slug)
    keys = sorted({key for _, point, _ in shape["cells"] for key in point})
    parts = []
    for (arm, point, number), seed in itertools.product(shape["cells"], range(SEEDS)):
        for probe, name, sites, ranges in shape["layouts"][number]:
            steps, typical = steps_of(ranges), shape["typical"].get(f"{probe}:{name}", 1.0)
            for site in sites:
                where = (probe, name, site, tuple(sorted(point.items())))
                level = _draws((*where, "" if equal else arm, salt))
                values = _values(name, typical, steps, seed, 0.3 * level.standard_normal(), spread, where, salt)
                parts.append(_rows(arm, seed, steps, probe, site, name, values, {key: point.get(key) for key in keys}))
    return Evidence(pl.concat(parts, how="vertical_relaxed"), shape["settings"], tuple(range(SEEDS)), 0.95)


def _values(name, typical, steps, seed, level, spread, where, salt):
    """Return planted values (n,) of one quantity of one cell at its steps."""
    if name == "diverged":
        return np.zeros(len(steps))
    noise = _draws((*where, seed, salt)).standard_normal(1 + len(steps))
    factor = np.exp(level + spread * (noise[0] + 0.3 * noise[1:]))
    if "accuracy" in name:
        # Within [0, 1] and in the order of the factors; over many steps it rises.
        top = 1 - 0.05 * factor if len(steps) == 1 else 1 - 0.01 * factor
        return np.clip(top * np.minimum(1, (steps - steps[0] + 1) / (1 + 0.3 * len(steps) * factor[0])), 0, 1)
    return (typical or 1e-3) * factor


def _draws(key):
    return np.random.default_rng(zlib.crc32(repr(key).encode()))


def _rows(arm, seed, steps, probe, site, name, values, point):
    given = {"arm": arm, "seed": seed, "probe": probe, "site": site, "name": name, "unit": "1", "cell": "planted"}
    numbers = {"step": pl.Series(steps, dtype=pl.Int64), "value": pl.Series(values, dtype=pl.Float64)}
    fixed = {key: float(value) if isinstance(value, int) else value for key, value in point.items()}
    return pl.DataFrame(numbers).with_columns(**{key: pl.lit(value) for key, value in (given | fixed).items()})


def changed(evidence, rows, change):
    """Return evidence in which the values of some rows are changed.

    Args:
        evidence: The records.
        rows: Expression of the rows.
        change: Makes an expression of the values out of that of the old ones.
    """
    value = pl.when(rows).then(change(pl.col("value"))).otherwise(pl.col("value")).alias("value")
    return dataclasses.replace(evidence, frame=evidence.frame.with_columns(value))


def exchanged(evidence, first, second):
    """Return evidence in which two arms have each other's records."""
    arms = pl.col("arm").replace({first: second, second: first})
    return dataclasses.replace(evidence, frame=evidence.frame.with_columns(arms))


def rows_at(where):
    """Return the expression of the rows of an arm at a point; None stands for any value."""
    rows = pl.lit(True)
    for key, value in where.items():
        if value is not None:
            rows &= pl.col(key) == value if isinstance(value, str | float | int) else pl.col(key).is_in(list(value))
    return rows


@dataclass(frozen=True)
class WatchedEvidence(Evidence):
    """Evidence that remembers what was asked of it."""

    asked: list = field(default_factory=list)

    def select(self, *, before=None, **where):
        self.asked.append((before, where))
        return super().select(before=before, **where)


def rows_read(quantity, evidence, **where):
    """Return the expression of the rows that a quantity asks for."""
    watched = WatchedEvidence(*(getattr(evidence, item.name) for item in dataclasses.fields(Evidence)))
    quantity(watched, **where)
    quantity.limits(watched)
    rows = pl.lit(False)
    for before, asked in watched.asked:
        within = pl.lit(True) if before is None else pl.col("step") < before
        rows |= rows_at(asked) & within
    return rows


__all__ = ["COLUMNS", "SEEDS", "WatchedEvidence", "changed", "exchanged", "planted_run", "rows_at", "rows_read"]
