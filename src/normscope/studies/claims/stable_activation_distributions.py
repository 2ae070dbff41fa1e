"""Does batch norm hold the distributions of the hidden values in place, and does that go with fast training?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
import torch
from scipy.stats import spearmanr
from torch import nn

from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Record, Verdict
from normscope.studies.evidence import Evidence, typical
from normscope.studies.figures import accuracy, reached
from normscope.studies.judging import best_rate, conjunction
from normscope.studies.lab import norms
from normscope.studies.lab.arms import first_batch, fit, network, noted, split_of
from normscope.studies.lab.norms import Factory
from normscope.studies.lab.trail import Trail
from normscope.studies.lab.train_stacked import fit_stacked, stackable
from normscope.studies.study import AbstractStudy

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

ARMS = {"none": "no norm", "batch": "batch norm", "layer": "layer norm"}


class StableActivationDistributions(AbstractStudy):
    r"""With batch norm the distributions of hidden values settle early and move less.

    ## Claim
    With batch norm hidden values reach stable ranges after few iterations: it reduces internal covariate shift, as a
    change of distributions (article on batch norm; Ioffe & Szegedy 2015, Figure 1).

    ## Method
    Ioffe & Szegedy's network: three sigmoid layers of 100, weights N(0, 0.1²), batches of 60, on a fixed probe batch;
    what is followed is the input of each sigmoid, after gamma and beta. Per unit the path of its distribution, the sum
    of the 1-Wasserstein distances between readings 20 steps apart, over its mean interquartile range. Primary: the
    path without norm over that with batch norm, above 2 at each learning rate and at each arm's own best one (all must
    hold). Parts: the same of the standardized distribution (its shape alone), the net displacement, the step at which
    it settles within a tenth, and, over arms and learning rates, Spearman's correlation of the path with the steps to
    90 % of training accuracy: "it predicts the speed" is supported above .5.

    ## Prediction
    Supported for this network; the correlation weak. Two moments of the normalized values cannot drift at all within
    a batch, so what can is gamma, beta and the shape.

    ## Threats
    A network that does not learn does not move: without norm a sigmoid net stands still on a plateau at low learning
    rates, with a short path. The fixed probe batch is normalized by its own statistics. The interquartile range in the
    denominator grows with training, which shortens paths in its units.
    """

    CODE = "stable-activation-distributions"
    CARD = 10
    TOPIC = "covariate shift"
    SOURCES = (
        "Article on batch norm, internal covariate shift",
        "Ioffe & Szegedy 2015 (arXiv:1502.03167), section 4.1 and Figure 1",
        "Santurkar et al. 2018 (arXiv:1805.11604), Figures 1c and 8",
    )
    CLAIM = "With batch norm the distributions of hidden values move less while the network trains."
    ENDPOINT = "Path of the distributions in interquartile ranges, without norm over with batch norm"
    MARGIN = math.log(2)
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 3, "width": 100, "activation": "sigmoid"},
            "batch": 60,
            "lrs": [0.1, 0.5, 2.0],
            "steps": 800,
            "every": 20,
            "probe": 500,
            "train": None,
            "test": None,
        },
        "full": {
            "network": {"name": "mlp", "depth": 3, "width": 100, "activation": "sigmoid"},
            "batch": 60,
            "lrs": [0.1, 0.5, 2.0],
            "steps": 50000,
            "every": 500,
            "probe": 1000,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every arm at every learning rate."""
        for rate in settings["lrs"]:
            for arm in ARMS:
                yield arm, {"lr": rate}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Train one arm and follow its distributions."""
        split, trail = split_of(cell, data, device), _trail(cell, data, device)
        yield from fit(_network(cell, data, device), split, cell, watch=trail)
        yield from trail.finish()

    def together(self, cell: Cell) -> bool:
        """Train dense networks with all seeds at once."""
        return stackable(cell)

    def run_cells(self, cells: Sequence[Cell], data: "Dataset", device: str) -> Iterable[tuple[Cell, list[Record]]]:
        """Train one arm with all seeds at once, and follow the distributions of each."""
        splits = [split_of(cell, data, device) for cell in cells]
        trails = [_trail(cell, data, device) for cell in cells]
        models = [_network(cell, data, device) for cell in cells]
        trained = fit_stacked(models, splits, cells, watch=trails, watch_every=int(cells[0].settings["every"]))
        for cell, records, trail in zip(cells, trained, trails, strict=True):
            yield cell, [*records, *trail.finish()]

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the paths at every learning rate and at the best ones; what they predict is a part."""
        rates = evidence.settings["lrs"]
        best = {arm: best_rate(evidence, arm) for arm in ("none", "batch")}
        pairs = [(f"learning rate {rate:g}", rate, rate) for rate in rates]
        pairs.append((f"own best ({best['none']:g} and {best['batch']:g})", best["none"], best["batch"]))
        conditions = [self._compare(evidence, "path", *pair) for pair in pairs]
        outcome, p, decisive = conjunction(conditions, 1 - evidence.level)
        parts = [
            *conditions,
            *(self._compare(evidence, name, *pairs[-1]) for name in ("shape_path", "displacement", "settled")),
            self._predicts(evidence),
        ]
        return self.verdict(
            outcome,
            decisive.effect,
            reason=" ".join(part.reason for part in conditions),
            p_value=p,
            primary=True,
            parts=parts,
        )

    def _compare(self, evidence: Evidence, name: str, where: str, plain: float, normed: float) -> Verdict:
        words = {
            "path": "Path of the distributions in interquartile ranges",
            "shape_path": "Path of the standardized distributions",
            "displacement": "Distance from first to last distribution, in interquartile ranges",
            "settled": "Steps until the distributions stay within a tenth of their end",
        }[name]
        without, with_ = _travel(evidence, name, "none", plain), _travel(evidence, name, "batch", normed)
        return self.part(
            evidence,
            without - with_,
            scale="log-ratio",
            claim="" if name == "path" else f"Less with batch norm: {words[:1].lower()}{words[1:]}.",
            endpoint=f"{words}, without norm over with batch norm, {where}",
            reason=f"At {where}: {typical(without, logs=True)} without, {typical(with_, logs=True)} with batch norm.",
        )

    def _predicts(self, evidence: Evidence) -> Verdict:
        points = [(arm, rate) for rate in evidence.settings["lrs"] for arm in ARMS]
        paths = np.array([_travel(evidence, "path", arm, rate) for arm, rate in points])
        steps = np.array([reached(evidence, arm, 0.9, lr=rate)[0] for arm, rate in points])
        found = np.full(len(evidence.seeds), np.nan)
        for index in range(len(found)):
            keep = np.isfinite(paths[:, index])
            if keep.sum() > 2 and np.ptp(steps[keep, index]) > 0 and np.ptp(paths[keep, index]) > 0:
                found[index] = spearmanr(paths[keep, index], steps[keep, index]).statistic
        return self.part(
            evidence,
            found,
            scale="value",
            margin=0.5,
            claim="Networks whose distributions move less train faster.",
            endpoint="Spearman's correlation of the path with the steps to 90 %, over arms and learning rates",
            reason=f"Correlation {typical(found)} over {len(points)} combinations.",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw Figure 1 of the source, the path, and the loss."""
        rate = best_rate(evidence, "batch")
        site = _last_site(evidence)
        return [
            curves(
                evidence.select(probe="trail", arm=["none", "batch"], site=site, lr=rate),
                y=["low", "median", "high"],
                slug="percentiles",
                title=f"One sigmoid's input in the last hidden layer: percentiles 15, 50, 85 (learning rate {rate:g})",
                y_title="Input of the sigmoid",
                labels={**ARMS, "low": "15th", "median": "median", "high": "85th"},
                caption="Mean over seeds of the first unit, on the probe batch.",
            ),
            curves(
                evidence.select(probe="trail", name="path", site=site, lr=rate),
                y="path",
                slug="path",
                title=f"Distance between readings, last hidden layer (learning rate {rate:g})",
                y_title="Wasserstein distance to the last reading",
                log=True,
                labels=ARMS,
                caption="; ".join(
                    f"{words}: path {typical(_travel(evidence, 'path', arm, rate), logs=True)} interquartile ranges"
                    for arm, words in ARMS.items()
                ),
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate paths, settling and speed."""
        rows = tuple(
            (
                f"{rate:g}",
                words,
                *(typical(_travel(evidence, name, arm, rate), logs=True) for name in ("path", "shape_path", "settled")),
                typical(reached(evidence, arm, 0.9, lr=rate)[0]),
                typical(accuracy(evidence, arm, lr=rate)),
            )
            for rate in evidence.settings["lrs"]
            for arm, words in ARMS.items()
        )
        columns = (
            "Learning rate",
            "Arm",
            "Path",
            "Path of the shape",
            "Settled after",
            "Steps to 90 %",
            "Test accuracy",
        )
        return [Table("Distributions and training", columns, rows)]


def _network(cell: Cell, data: "Dataset", device: str) -> nn.Module:
    model = network(cell, data, noted(_norm(cell.arm)), device)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):  # drawn at 2 over the inputs; the source has a spread of 0.1
                module.weight.mul_(0.1 * math.sqrt(module.in_features / 2))
    return model


def _trail(cell: Cell, data: "Dataset", device: str) -> Trail:
    batch, _ = first_batch(split_of(cell, data, device), cell, int(cell.settings["probe"]))
    return Trail(cell, batch, int(cell.settings["every"]))


def _norm(arm: str) -> Factory:
    if arm == "layer":
        return lambda place: nn.LayerNorm(place.features)
    return norms.none() if arm == "none" else norms.batch()


def _last_site(evidence: Evidence) -> str:
    return str(max(evidence.select(probe="trail")["site"].unique().to_list()))


def _travel(evidence: Evidence, name: str, arm: str, rate: float) -> np.ndarray:
    """Return per seed the log of a length, mean over layers, in units of the mean interquartile range."""
    frame = evidence.select(probe="trail", arm=arm, lr=rate)
    sites: list[np.ndarray] = []
    for site in sorted(frame["site"].unique().to_list()):
        here = frame.filter(pl.col("site") == site)
        length = evidence.per_seed(here.filter(pl.col("name") == name), pl.col("value").sum())
        if name in ("path", "displacement"):
            length = length / evidence.per_seed(here.filter(pl.col("name") == "iqr"))
        sites.append(length)
    if not sites:
        return np.full(len(evidence.seeds), np.nan)
    mean = np.mean(sites, axis=0)
    return np.log(np.where(mean > 0, mean, np.nan))
