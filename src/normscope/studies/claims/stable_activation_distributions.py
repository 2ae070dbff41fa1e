"""Does batch norm hold the distributions of the hidden values in place, and does that go with fast training?"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy.stats import spearmanr
from torch import nn

from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.studies import (
    AbstractTraining,
    Arm,
    Best,
    Contrast,
    Evidence,
    Quantity,
    accuracy,
    presets,
    steps_to,
)
from normscope.studies.lab import norms
from normscope.studies.lab.arms import first_batch, fit, network, noted
from normscope.studies.lab.data import Dataset
from normscope.studies.lab.trail import Trail
from normscope.studies.lab.train_stacked import fit_stacked

#: What is measured of the distributions, by the name of its records.
TRAVEL = {
    "path": "path of the distributions in interquartile ranges",
    "shape_path": "path of the standardized distributions",
    "displacement": "distance from first to last distribution in interquartile ranges",
    "settled": "steps until the distributions stay within a tenth of their end",
}
#: Claims about the lengths that are not the study's own.
CLAIMS = {
    "shape_path": "With batch norm the shape of the distributions of hidden values moves less.",
    "displacement": "With batch norm the distributions of hidden values end nearer to where they began.",
    "settled": "With batch norm the distributions of hidden values settle sooner.",
}
SAYS = {
    "path": "the path of the distributions is {effect} with batch norm",
    "shape_path": "the path of the distributions' shape is {effect} with batch norm",
    "displacement": "the distance from the first to the last distribution is {effect} with batch norm",
    "settled": "the distributions settle {effect} with batch norm",
}
STEPS = steps_to(0.9)


class StableActivationDistributions(AbstractTraining):
    r"""With batch norm the distributions of hidden values settle early and move less.

    ## Claim
    With batch norm hidden values reach stable ranges after few iterations: it reduces internal covariate shift, as a
    change of distributions (article on batch norm; Ioffe & Szegedy 2015, Figure 1).

    ## Method
    Ioffe & Szegedy's network: three sigmoid layers of 100, weights N(0, 0.1²), batches of 60, on a fixed probe batch;
    the input of each sigmoid is followed, after gamma and beta. Per unit the path of its distribution, the sum of the
    1-Wasserstein distances between readings 20 steps apart, over its mean interquartile range. Judged: the path without
    norm over that with batch norm, above 2. The headline has both arms at one learning rate, as the source trains them;
    its rate is not given, so the middle one of three is taken (0.5). Also tried: the other rates, and each arm at its
    own best. Claims of their own: the shape alone (the path of the standardized distributions) moves less; first and
    last distribution lie nearer; distributions stay within a tenth of their end sooner; and, over arms and learning
    rates, Spearman's correlation of the path with the steps to 90 % of the way to the best training accuracy is above
    .5.

    ## Prediction
    Holds for this network; the correlation weak. Two moments of the normalized values cannot drift at all within a
    batch, so only gamma, beta and the shape can.

    ## Threats
    A network that does not learn does not move: without norm a sigmoid net stands still on a plateau at low learning
    rates, with a short path. The fixed probe batch is normalized by its own statistics. The interquartile range in the
    denominator grows with training, which shortens paths in its units. Under the source's protocol of 50 000 steps on
    MNIST at a learning rate of 0.1 (benchmarks/results/ioffe-szegedy-mnist.md) the path is 1.90 times shorter with
    batch norm (1.85 to 1.95), just below this margin, on Fashion-MNIST 2.19 times; there the shape alone moves more
    with batch norm (0.59 and 0.78 times).
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
    ON_A_CASE = "no question judges distributions: the section of the question `shift` shows how far they move"
    ENDPOINT = "Path of the distributions in interquartile ranges, without norm over with batch norm, learning rate 0.5"
    MARGIN = math.log(2)
    MARGIN_REASON = "the source's figure shows percentiles that swing several times as far without batch norm"
    ARMS = {
        "none": Arm("no norm", norms.none()),
        "batch": Arm("batch norm", norms.batch()),
        "layer": Arm("layer norm", lambda place: nn.LayerNorm(place.features)),
    }
    POINTS = {"lr": "lrs"}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 3, "width": 100, "activation": "sigmoid"},
            "batch": 60,
            "lrs": [0.1, 0.5, 2.0],
            "steps": 800,
            "every": 20,
            "probe": 500,
            "train": None,
            "test": None,
        },
        full={"steps": 50000, "every": 500, "probe": 1000},
    )

    def network(self, cell: Cell, data: Dataset, device: str) -> nn.Module:
        """Return the network of an arm with the source's initial weights, the inputs of its sigmoids noted."""
        model = network(cell, data, noted(self.norm(cell)), device)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, nn.Linear):  # drawn at 2 over the inputs; the source has a spread of 0.1
                    module.weight.mul_(0.1 * math.sqrt(module.in_features / 2))
        return model

    def _trail(self, cell: Cell, data: Dataset, device: str) -> Trail:
        batch, _ = first_batch(self.split(cell, data, device), cell, int(cell.settings["probe"]))
        return Trail(cell, batch, int(cell.settings["every"]))

    def run_cell(self, cell: Cell, data: Dataset, device: str) -> Iterable[Record]:
        """Train one arm and follow its distributions."""
        split, trail = self.split(cell, data, device), self._trail(cell, data, device)
        yield from fit(self.network(cell, data, device), split, cell, watch=trail)
        yield from trail.finish()

    def run_cells(self, cells: Sequence[Cell], data: Dataset, device: str) -> Iterable[tuple[Cell, list[Record]]]:
        """Train one arm with all seeds at once, and follow the distributions of each."""
        splits = [self.split(cell, data, device) for cell in cells]
        trails = [self._trail(cell, data, device) for cell in cells]
        models = [self.network(cell, data, device) for cell in cells]
        trained = fit_stacked(models, splits, cells, watch=trails, watch_every=int(cells[0].settings["every"]))
        for cell, records, trail in zip(cells, trained, trails, strict=True):
            yield cell, [*records, *trail.finish()]

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the path at the middle rate; other rates are also tried; other lengths and the correlation after it."""
        rates = evidence.settings["lrs"]
        middle = rates[len(rates) // 2]
        for rate in (middle, *(rate for rate in rates if rate != middle), Best("lr")):
            yield self._compare("path", rate)
        for name in CLAIMS:
            for rate in (middle, Best("lr")):
                yield self._compare(name, rate)
        words = "Spearman's correlation of the path with the steps to 90 %, over arms and learning rates"
        yield Contrast(
            Quantity(words, self._correlation),
            scale="value",
            margin=0.5,
            margin_reason="below it a path tells less than a quarter of the ranks' spread",
            claim="Networks whose distributions move less train faster.",
            name="correlation with speed",
            endpoint=words,
            says="the correlation of the path with the steps that training takes is {effect}",
        )

    def _compare(self, name: str, rate: float | Best) -> Contrast:
        where = "own best rates" if isinstance(rate, Best) else f"learning rate {rate:g}"
        return Contrast(
            _travel(name),
            "none",
            "batch",
            at={"lr": rate},
            scale="log-ratio",
            claim=CLAIMS.get(name, ""),
            name=f"{name.replace('_', ' ')}, {where}",
            says=SAYS[name],
            comparative=("sooner", "later") if name == "settled" else ("shorter", "longer"),
        )

    def _correlation(self, evidence: Evidence) -> np.ndarray:
        points = [{"arm": arm, "lr": rate} for rate in evidence.settings["lrs"] for arm in self.ARMS]
        paths, steps = (
            np.array([quantity(evidence, **point) for point in points]) for quantity in (_travel("path"), STEPS)
        )
        found = np.full(len(evidence.seeds), np.nan)
        for index in range(len(found)):
            keep = np.isfinite(paths[:, index])
            if keep.sum() > 2 and np.ptp(steps[keep, index]) > 0 and np.ptp(paths[keep, index]) > 0:
                found[index] = spearmanr(paths[keep, index], steps[keep, index]).statistic
        return found

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw Figure 1 of the source, and the path."""
        rate = Best("lr").of(evidence, arm="batch")
        at = {"site": str(max(evidence.select(probe="trail")["site"].unique().to_list())), "lr": rate}
        return [
            self.curves(
                evidence,
                ["low", "median", "high"],
                probe="trail",
                at={"arm": ["none", "batch"], **at},
                slug="percentiles",
                title=f"One sigmoid's input in the last hidden layer: percentiles 15, 50, 85 (learning rate {rate:g})",
                y_title="Input of the sigmoid",
                labels={**self.wording.arms, "low": "15th", "median": "median", "high": "85th"},
                caption="Mean over seeds of the first unit, on the probe batch.",
            ),
            self.curves(
                evidence,
                "path",
                probe="trail",
                at=at,
                slug="path",
                title=f"Distance between readings, last hidden layer (learning rate {rate:g})",
                y_title="Wasserstein distance to the last reading",
                log=True,
                caption="; ".join(
                    f"{words}: path {_travel('path').text(evidence, arm=arm, lr=rate)} interquartile ranges"
                    for arm, words in self.wording.arms.items()
                )
                + ".",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate paths, settling and speed."""
        return [
            self.grid_table(
                [*(_travel(name) for name in ("path", "shape_path", "settled")), STEPS, accuracy()],
                evidence,
                rows={"lr": evidence.settings["lrs"], "arm": list(self.ARMS)},
                title="Distributions and training",
            )
        ]


def _travel(name: str) -> Quantity:
    """Return the log of a length, mean over layers, in units of the mean interquartile range."""

    def read(evidence: Evidence, **where: Any) -> np.ndarray:
        frame = evidence.select(probe="trail", **where)
        sites: list[np.ndarray] = []
        for site in sorted(frame["site"].unique().to_list()):
            here = frame.filter(pl.col("site") == site)
            length = evidence.per_seed(here.filter(pl.col("name") == name), pl.col("value").sum())
            if name in ("path", "displacement"):
                length = length / evidence.per_seed(here.filter(pl.col("name") == "iqr"))
            sites.append(length)
        mean = np.mean(sites, axis=0) if sites else np.full(len(evidence.seeds), np.nan)
        return np.log(np.where(mean > 0, mean, np.nan))

    return Quantity(TRAVEL[name], read, logs=True)
