"""Gradients from layer to layer, as the records of a comparison hold them, and what theory says of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from normscope.comparing.described import MODEL, NOT_CLASSES
from normscope.plots import natural_key
from normscope.probes import Readings
from normscope.probes.output_sizes import Comparable, comparable
from normscope.studies import Evidence, Quantity
from normscope.studies.evidence import Floats
from normscope.studies.lab.chain import theory

When = Literal["start", "end"]
#: Of the steps, at the end of a run: what is read there is read several times, for a single batch has its noise.
LATE = 0.75
_NAMES = ("output_norm", "output_width", "output_positions")
_FEWEST = 3  # layers between which theory is held against a slope
_PASSING = ("Identity", "Bypass", "Flatten")  # hand on what they are given


def order_of(evidence: Evidence, **where: Any) -> list[str]:
    """Return the layers of an arm whose gradients were read, from input to output; of all arms without one."""
    order = evidence.select(probe=MODEL, name="order", **where)
    known = dict(order.group_by("site").agg(pl.col("value").min()).iter_rows())
    read = evidence.select(probe="gradient_flow", name="output_norm", **where)["site"].unique().to_list()
    return sorted(map(str, read), key=lambda site: (known.get(site, math.inf), natural_key(site)))


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


def theory_of(evidence: Evidence, arm: str, words: str) -> Theory | None:
    """Return what theory says of an arm; None where it says nothing, or the records cannot show that it does.

    Theory is held against chains alone: linear layers with ReLU between them, and batch norm before each ReLU or
    nowhere. A model is known to be one if all its containers are ``Sequential``; what stands around the one that holds
    the layers may be of any class, for it changes no gradient from layer to layer within.

    - A plain chain: a unit's gradient is the sum over those of the next layer, times weights. With weights of mean
      square v and n inputs, ReLU passing half, the square summed over a layer is n v / 2 times that of the next:
      1/6 for torch's initial weights, v = 1 / (3 n), and 1 for He's.
    - With batch norm the norm divides by the standard deviation of its input, whose variance is n v Var[ReLU(z)]:
      (1 / 2) / Var[ReLU(z)] = pi / (pi - 1) in large batches, whatever v (Yang et al. 2019, theorem 8 for small
      ones). Not of the first layer, whose input is the data, and not of the last, which has no norm behind it.

    Args:
        evidence: The records.
        arm: The arm.
        words: What the arm is called.
    """
    own = evidence.select(probe=MODEL, arm=arm, rate=1.0)
    chain = _chain(modules_of(evidence, arm))
    sites, kinds = [site for site, kind in chain if kind == "Linear"], [kind for _, kind in chain]
    if hidden := _blocks(kinds, ["Linear", "BatchNorm1d", "ReLU"]):
        batches = evidence.per_seed(own.filter(pl.col("name") == "batch"))
        expected = np.array([theory("relu", int(batch) if batch > 3 else None) for batch in batches])
        sites, said = sites[1:hidden], "batch norm and ReLU"
    elif _blocks(kinds, ["Linear", "ReLU"]):
        gains = own.filter(pl.col("name") == "weight_gain")
        expected = np.array([_growth_by_gains(gains.filter(pl.col("seed") == seed), sites) for seed in evidence.seeds])
        said = "ReLU"
    else:
        return None
    measured = _growth_among(evidence, arm, sites)
    return Theory(f"{words} ({said})", measured, expected) if np.isfinite(measured).any() else None


def _growth_by_gains(gains: pl.DataFrame, sites: Sequence[str]) -> float:
    """Return the growth a layer of a plain chain, by least squares as the measured one: a last layer counts as there.

    Args:
        gains: Mean square of the weights times their number of inputs, by site.
        sites: The layers, in order.
    """
    found = dict(gains.select("site", "value").iter_rows())
    if len(sites) < _FEWEST or any(site not in found for site in sites[1:]):
        return math.nan
    logs = np.log(np.array([found[site] for site in sites[1:]]) / 2)
    levels = np.append(np.cumsum(logs[::-1])[::-1], 0.0)  # of the squared gradient, above that of the last layer
    return math.exp(-float(np.polyfit(np.arange(len(levels)), levels, 1)[0]))


def _growth_among(evidence: Evidence, arm: str, sites: Sequence[str]) -> Floats:
    """Return the growth a layer at the start among some layers of one number of positions, per seed."""
    read = _read(evidence, "start", arm=arm, rate=1.0)
    found = np.full(len(evidence.seeds), math.nan)
    for index, seed in enumerate(evidence.seeds):
        values = read[seed].values if seed in read else {}
        norms = {site: series for site, series in values.get("output_norm", {}).items() if site in sites}
        widths = {site: series for site, series in values.get("output_width", {}).items() if site in norms}
        if len(norms) >= _FEWEST:
            found[index] = math.exp(_growth(Readings({"output_norm": norms, "output_width": widths}, {})))
    return found


def _blocks(kinds: Sequence[str], block: Sequence[str]) -> int:
    """Return how often a block stands in a row, where nothing but a last linear layer stands behind; 0 otherwise."""
    body = list(kinds[:-1] if kinds[-1:] == ["Linear"] else kinds)
    count = len(body) // len(block)
    return count if body == list(block) * count else 0


def modules_of(evidence: Evidence, arm: str) -> dict[str, str]:
    """Return the class name of each module of an arm by its qualified name, in the order of registration."""
    own = evidence.select(probe=MODEL, arm=arm, rate=1.0)
    told = own.filter(~pl.col("name").is_in(NOT_CLASSES) & (pl.col("seed") == pl.col("seed").min())).sort("value")
    return {str(site): str(name) for site, name in told.select("site", "name").iter_rows()}


def _chain(kinds: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the modules of a model that is a sequence, in order; none if it is not known to be a sequence."""
    inside: dict[str, list[str]] = {site: [] for site in kinds}
    for site in kinds:
        if site:
            inside.setdefault(site.rpartition(".")[0], []).append(site)
    root = ""
    while kinds.get(root) != "Sequential" and len(inside.get(root, [])) == 1:
        root = inside[root][0]
    within = [site for site in kinds if root == "" or site == root or site.startswith(f"{root}.")]
    if any(inside[site] and kinds[site] != "Sequential" for site in within):
        return []
    return [(site, kinds[site]) for site in within if not inside[site] and kinds[site] not in _PASSING]
