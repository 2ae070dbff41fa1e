"""Gradients from layer to layer, as the records of a comparison hold them, and what theory says of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from normscope.comparing.described import LEVELS, MODEL, NOT_CLASSES
from normscope.plots import natural_key
from normscope.probes import Readings
from normscope.probes.output_sizes import Comparable, comparable
from normscope.studies import Evidence, Quantity
from normscope.studies.evidence import Floats

When = Literal["start", "end"]
#: Of the steps, at the end of a run: what is read there is read several times, for a single batch has its noise.
LATE = 0.75
_NAMES = ("output_norm", "output_width", "output_positions")
_FEWEST = 3  # layers between which theory is held against a slope


def order_of(evidence: Evidence, **where: Any) -> list[str]:
    """Return the layers of an arm whose gradients were read, from input to output; of all arms without one."""
    order = evidence.select(probe=MODEL, name="order", **where)
    known = dict(order.group_by("site").agg(pl.col("value").min()).iter_rows())
    read = evidence.select(probe="gradient_flow", name="output_norm", **where)["site"].unique().to_list()
    return sorted(map(str, read), key=lambda site: (known.get(site, math.inf), natural_key(site)))


def classes_of(evidence: Evidence, arm: str) -> list[str]:
    """Return the class of every module of an arm but the model itself, at the first seed; in no order."""
    rows = evidence.select(probe=MODEL, arm=arm).filter(
        (pl.col("seed") == evidence.seeds[0])
        & (pl.col("site").cast(pl.String) != "")
        & ~pl.col("name").cast(pl.String).is_in([*NOT_CLASSES])
    )
    return rows.select(pl.col("site").cast(pl.String), pl.col("name").cast(pl.String)).unique()["name"].to_list()


def growth(when: When) -> Quantity:
    """Return the factor by which the squared gradient grows per layer toward the input, as a logarithm.

    It is the slope over layers whose outputs have equally many positions, of the square summed over the width: where
    all outputs have one size it is what the probe records.

    Args:
        when: At the first step, or the geometric mean over the readings of the last quarter of the steps.
    """

    def read(evidence: Evidence, **where: Any) -> Floats:
        found = {seed: _growth(readings) for seed, readings in _read(evidence, when, **where).items()}
        return np.array([found.get(seed, math.nan) for seed in evidence.seeds])

    at = "the first step" if when == "start" else "the end"
    return Quantity(f"growth of the squared gradient a layer toward the input, {at}", read, logs=True)


def reach(evidence: Evidence, **where: Any) -> int:
    """Return how many layers lie between the first and the last of those that ``growth`` compares."""
    return max((_comparable(readings).reach for readings in _read(evidence, "start", **where).values()), default=0)


def spread(when: When) -> Quantity:
    """Return the norm of the gradient of a layer's parameters, largest over smallest of all layers, as a logarithm."""

    def read(evidence: Evidence, **where: Any) -> Floats:
        found = _at(evidence.select(probe="gradient_flow", name="norm", **where), evidence, when)
        norms = found.group_by("seed", "site").agg(pl.col("value").log().mean())
        return evidence.per_seed(norms, pl.col("value").max() - pl.col("value").min())

    at = "the first step" if when == "start" else "the end"
    return Quantity(f"gradient norm of a layer, largest over smallest, {at}", read, logs=True)


def growth_by_step(evidence: Evidence, **where: Any) -> pl.DataFrame:
    """Return ``growth`` at every reading, in columns arm, seed, step, growth."""
    read = evidence.select(probe="gradient_flow", **where)
    rows = []
    for arm in read["arm"].unique().sort().to_list():
        own = evidence.select(probe="gradient_flow", arm=arm, **where)
        order = order_of(evidence, arm=arm, **where)
        sizes = own.filter(pl.col("name").is_in(_NAMES[1:]))
        for (seed, step), part in own.filter(pl.col("name") == "output_norm").group_by("seed", "step"):
            found = math.exp(_growth(_readings(pl.concat([part, sizes.filter(pl.col("seed") == seed)]), order)))
            rows.append({"arm": arm, "seed": seed, "step": step, "growth": found})
    schema = {"arm": pl.String, "seed": pl.Int64, "step": pl.Int64, "growth": pl.Float64}
    return pl.DataFrame(rows, schema=schema).sort("arm", "seed", "step")


def _at(frame: pl.DataFrame, evidence: Evidence, when: When) -> pl.DataFrame:
    if when == "start":
        return frame.filter(pl.col("step") == 0)
    return frame.filter(pl.col("step") >= max(1, LATE * (int(evidence.settings["steps"]) - 1)))


def _read(evidence: Evidence, when: When, **where: Any) -> dict[int, Readings]:
    """Return per seed the gradients at outputs, the layers from input to output, with the outputs' sizes."""
    own = evidence.select(probe="gradient_flow", **where).filter(pl.col("name").is_in(_NAMES))
    norms, sizes = pl.col("name") == "output_norm", pl.col("step") == 0
    kept = pl.concat([_at(own.filter(norms), evidence, when), own.filter(~norms & sizes)])
    order = order_of(evidence, **where)
    with_norms = kept.filter(norms)["seed"].unique().to_list()
    return {seed: _readings(kept.filter(pl.col("seed") == seed), order) for seed in with_norms}


def _readings(frame: pl.DataFrame, order: Sequence[str]) -> Readings:
    """Return the geometric mean of each quantity by layer; a layer that no gradient reaches stays at 0."""
    means = frame.group_by("name", "site").agg(pl.col("value").log().mean().exp())
    values: dict[str, dict[str, list[tuple[int, float]]]] = {}
    rank = {site: index for index, site in enumerate(order)}
    for name, site, value in sorted(means.iter_rows(), key=lambda row: rank.get(row[1], len(rank))):
        values.setdefault(str(name), {})[str(site)] = [(0, value)]
    return Readings(values, {})


def _comparable(readings: Readings) -> Comparable:
    alike = {site: (index, 1.0) for index, site in enumerate(readings.values.get("output_norm", {}))}
    return comparable(readings) or Comparable([alike])


def _growth(readings: Readings) -> float:
    found = _comparable(readings).growth(readings.first("output_norm"))
    return math.log(found) if found > 0 else math.nan


@dataclass(frozen=True)
class Theory:
    """What theory says of the gradient of an arm at the start.

    Attributes:
        words: Of what.
        measured: The growth a layer that was measured, per seed.
        expected: The growth in theory, per seed.
    """

    words: str
    measured: Floats
    expected: Floats


def theories_of(evidence: Evidence, arm: str, words: str) -> list[Theory]:
    """Return what theory says of an arm, for each kind of chain in it; nothing where it has too few layers of a kind.

    Measured and expected growth are slopes over the same layers: those in chains of linear layers, or of convolutions
    that keep the number of positions, with ReLU, or batch norm and ReLU, between them.

    Args:
        evidence: The records.
        arm: The arm.
        words: What the arm is called.
    """
    found = []
    for kind, name in LEVELS.items():
        told = evidence.select(probe=MODEL, arm=arm, rate=1.0)
        chains, levels = (
            told.filter(pl.col("name") == each).select("seed", "site", "value") for each in ("chain", name)
        )
        layers = levels.join(chains, on=["seed", "site"], suffix="_of_chain")
        both = [
            _growths(layers.filter(pl.col("seed") == seed), _squares(evidence, arm, seed)) for seed in evidence.seeds
        ]
        measured, expected = np.array(both, dtype=np.float64).T
        if np.isfinite(measured).any():
            found.append(Theory(f"{words} ({kind})", measured, expected))
    return found


def _squares(evidence: Evidence, arm: str, seed: int) -> dict[str, float]:
    """Return by layer the logarithm of the squared gradient at the start, summed over the width; layers in order."""
    readings = _read(evidence, "start", arm=arm, rate=1.0).get(seed)
    if readings is None:
        return {}
    widths = readings.first("output_width")
    norms = {site: series[0][1] for site, series in readings.values.get("output_norm", {}).items()}
    return {site: 2 * math.log(norm) + math.log(widths.get(site, 1.0)) for site, norm in norms.items() if norm > 0}


def _growths(layers: pl.DataFrame, squares: Mapping[str, float]) -> tuple[float, float]:
    """Return the growth a layer toward the input, measured and expected: a slope that all chains share.

    Args:
        layers: Columns ``site``, ``value`` (the expected level) and ``value_of_chain`` of a seed.
        squares: The measured levels by layer, in the order of the layers.
    """
    expected = dict(layers.select("site", "value").iter_rows())
    chains = [
        [site for site in squares if site in set(part["site"].cast(pl.String))]
        for _, part in layers.group_by("value_of_chain", maintain_order=True)
    ]
    at = [np.arange(len(sites)) - (len(sites) - 1) / 2 for sites in chains]
    if sum(max(len(sites) - 1, 0) for sites in chains) < _FEWEST - 1:
        return math.nan, math.nan
    below = sum(float(places @ places) for places in at)
    slopes = (
        sum(float(places @ [of[site] for site in sites]) for places, sites in zip(at, chains, strict=True)) / below
        for of in (squares, {str(site): level for site, level in expected.items()})
    )
    measured, theory = (math.exp(-slope) for slope in slopes)
    return measured, theory


def modules_of(evidence: Evidence, arm: str) -> dict[str, str]:
    """Return the class name of each module of an arm by its qualified name, in the order of registration."""
    own = evidence.select(probe=MODEL, arm=arm, rate=1.0)
    told = own.filter(~pl.col("name").is_in(NOT_CLASSES) & (pl.col("seed") == pl.col("seed").min())).sort("value")
    return {str(site): str(name) for site, name in told.select("site", "name").iter_rows()}
