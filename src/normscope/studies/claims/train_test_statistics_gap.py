"""Moving averages against statistics estimated anew."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from normscope import layers
from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Record
from normscope.studies import AbstractStudy, Contrast, Evidence, Quantity, presets
from normscope.studies.lab.arms import fit, network, recorder, split_of
from normscope.studies.lab.data import Dataset
from normscope.studies.lab.evaluate import accuracy as right, population_statistics
from normscope.studies.lab.models import Place

EVERY = 20
#: Which statistics evaluation uses: a further value of the condition, beside those of the grid.
STATISTICS = {"moving": "moving averages", "anew": "estimated anew", "own": "of the test data"}
ACCURACY = Quantity(
    "test accuracy, mean over steps",
    lambda evidence, statistics, **where: evidence.per_seed(
        evidence.select(probe="evaluated", name=statistics, **where)
    ),
    unit="points",
    floor=lambda evidence: evidence.floor,
    ceiling=0.9999,
    held_out=True,
)


class TrainTestStatisticsGap(AbstractStudy):
    r"""Evaluation with moving averages is worse than with statistics estimated anew.

    ## Claim
    Failures of batch norm come from the mismatch between population and mini-batch statistics: moving averages lag
    behind and are noisy, and statistics estimated anew repair evaluation (Wu & Johnson 2021, from two detailed
    summaries).

    ## Method
    Dense networks of three hidden layers of 100, learning rates .1 and 1, batches of 8 and 64, momentum .1 and .01. At
    every twentieth step: test accuracy with the moving averages, with statistics estimated anew on a thousand training
    samples (weights frozen, simple average), and with those of the test batch itself. The effect is the accuracy anew
    less with moving averages, mean over steps. The headline is the largest rate, the largest batches and the usual
    momentum .1: the source finds the averages worst in large-batch training, where few large steps move the weights
    fast. Also tried are all the other corners.

    ## Prediction
    Depends on the momentum: holds at .01, whose averages reach back a hundred steps, by three to four points; no
    effect that matters at .1.

    ## Threats
    Digits are evaluated on data like those trained on; a domain shift would add to the gap. The mean over steps weighs
    the early ones, in which the averages still hold their initial values.
    """

    CODE = "train-test-statistics-gap"
    CARD = 32
    TOPIC = "statistics"
    EXTENSION = True
    SOURCES = ("Wu & Johnson 2021 (arXiv:2105.07576), second hand",)
    CLAIM = "Statistics estimated anew give a better evaluation than moving averages."
    ON_A_CASE = "it has one arm: `normscope check` measures the gap and what recalibration gains"
    ENDPOINT = "Test accuracy over training, estimated anew less moving averages, largest rate and batch, momentum .1"
    MARGIN = 0.005
    MARGIN_REASON = "half a point is one or two of the 300 test images"
    ARMS = {"batch": "batch norm"}
    POINTS = {"lr": "lrs", "batch": "batches", "momentum": "momenta"}
    CONDITIONS = {"momentum": "momentum {:g}", "statistics": "statistics: {}"}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "lrs": [0.1, 1.0],
            "batches": [8, 64],
            "momenta": [0.1, 0.01],
            "steps": 160,
            "train": None,
            "test": None,
        },
        full={"network": {"name": "vgg-a"}, "lrs": [0.01, 0.1, 1.0], "batches": [2, 8, 64, 512], "steps": 15000},
    )

    def run_cell(self, cell: Cell, data: Dataset, device: str) -> Iterable[Record]:
        """Train, and evaluate in three ways on the way."""
        momentum = float(cell.point["momentum"])

        def make(place: Place) -> nn.Module:
            kind = layers.BatchNorm2d if place.spatial else layers.BatchNorm1d
            return kind(place.features, momentum=momentum)

        split, record = split_of(cell, data, device), recorder(cell, "evaluated")
        every = max(EVERY, int(cell.settings["steps"]) // 50)

        def watch(step: int, model: nn.Module) -> Iterator[Record]:
            if step % every or not step:
                return
            with torch.no_grad():
                model.eval()
                yield record("moving", right(model(split.x_test), split.y_test), step)
                with population_statistics(model, split.x_train):
                    yield record("anew", right(model(split.x_test), split.y_test), step)
                with population_statistics(model, split.x_test):
                    yield record("own", right(model(split.x_test), split.y_test), step)
                model.train()

        return fit(network(cell, data, make, device), split, cell, watch=watch)

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the corner nearest to the source: large steps and batches, the usual momentum; then the others."""
        judged = {"lr": max(evidence.settings["lrs"]), "batch": max(evidence.settings["batches"]), "momentum": 0.1}
        points = [dict(point) for _, point in self.grid(evidence.settings)]
        for point in (judged, *(point for point in points if point != judged)):
            yield _gap(point)

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the three accuracies over steps at the largest rate and batches, for each momentum."""
        drawn = []
        for momentum in evidence.settings["momenta"]:
            lr, batch = (max(evidence.settings[name]) for name in ("lrs", "batches"))
            point: dict[str, Any] = {"lr": lr, "batch": batch, "momentum": momentum}
            frame = evidence.select(probe="evaluated", **point)
            drawn.append(
                curves(
                    # A wide frame: the names of the records tell lines apart.
                    frame.rename({"name": "statistics", "value": "accuracy"}),
                    y="accuracy",
                    by="statistics",
                    slug=f"rate-{lr:g}-{batch}-{momentum:g}".replace(".", "-"),
                    title=f"Test accuracy by statistics, {self.wording.at(point)}",
                    y_title="Test accuracy",
                    labels=STATISTICS,
                    caption=self.verdict_of(_gap(point), evidence).reason,
                )
            )
        return drawn

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate every corner."""
        settings = evidence.settings
        return [
            self.grid_table(
                ACCURACY,
                evidence,
                rows={key: settings[name] for key, name in self.POINTS.items()},
                columns={"statistics": list(STATISTICS)},
            )
        ]


def _gap(point: Mapping[str, Any]) -> Contrast:
    return Contrast(
        ACCURACY,
        {"statistics": "anew"},
        {"statistics": "moving"},
        at=point,
        labels=("statistics estimated anew", "moving averages"),
        name=", ".join(f"{key} {value:g}" for key, value in point.items()),
        says="with statistics estimated anew the test accuracy is {effect} than with moving averages",
        comparative=("higher", "lower"),
    )
