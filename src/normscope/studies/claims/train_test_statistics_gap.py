"""Moving averages against statistics estimated anew."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from normscope import layers
from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Record, Verdict
from normscope.studies.evidence import Evidence, typical
from normscope.studies.judging import with_parts
from normscope.studies.lab.arms import fit, network, recorder, split_of
from normscope.studies.lab.evaluate import accuracy as right, population_statistics
from normscope.studies.lab.models import Place
from normscope.studies.study import AbstractStudy

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

EVERY = 20


class TrainTestStatisticsGap(AbstractStudy):
    r"""Evaluation with moving averages is worse than with statistics estimated anew.

    ## Claim
    Failures of batch norm come from the mismatch between population and mini-batch statistics: moving averages lag
    behind and are noisy, and statistics estimated anew repair evaluation (Wu & Johnson 2021, from two detailed
    summaries).

    ## Method
    Dense networks of three hidden layers of 100, learning rates .1 and 1, batches of 8 and 64, momentum .1 and .01. At
    every twentieth step: test accuracy with the moving averages, with statistics estimated anew on a thousand training
    samples (weights frozen, simple average), and with those of the test batch itself. Primary: anew less moving, mean
    over steps, at learning rate 1, batches of 8, momentum .1; supported above half a percentage point. Parts: the other
    corners.

    ## Prediction
    Supported where weights move fast against the average's memory (large rates, small momentum) or batches are small;
    no difference at small rates.

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
    ENDPOINT = "Test accuracy with statistics estimated anew less with moving averages, rate 1, batch 8, momentum 0.1"
    MARGIN = 0.005
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "lrs": [0.1, 1.0],
            "batches": [8, 64],
            "momenta": [0.1, 0.01],
            "steps": 160,
            "train": None,
            "test": None,
        },
        "full": {
            "network": {"name": "vgg-a"},
            "lrs": [0.01, 0.1, 1.0],
            "batches": [2, 8, 64, 512],
            "momenta": [0.1, 0.01],
            "steps": 15000,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every corner."""
        for lr in settings["lrs"]:
            for batch in settings["batches"]:
                for momentum in settings["momenta"]:
                    yield "batch", {"lr": lr, "batch": batch, "momentum": momentum}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Train, and evaluate in three ways on the way."""
        momentum = float(cell.point["momentum"])

        def make(place: Place) -> nn.Module:
            kind = layers.BatchNorm2d if place.spatial else layers.BatchNorm1d
            return kind(place.features, momentum=momentum)

        split = split_of(cell, data, device)
        record, steps = recorder(cell, "evaluated"), int(cell.settings["steps"])
        every = max(EVERY, steps // 50)

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

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge one corner; the others are parts."""
        settings = evidence.settings
        main = (max(settings["lrs"]), 8, 0.1)
        corners = [
            (lr, batch, momentum)
            for lr in settings["lrs"]
            for batch in settings["batches"]
            for momentum in settings["momenta"]
        ]
        parts = [self._corner(evidence, *corner) for corner in corners if corner != main]
        return with_parts(self._corner(evidence, *main, endpoint=self.ENDPOINT), parts)

    def _corner(self, evidence: Evidence, lr: float, batch: int, momentum: float, endpoint: str = "") -> Verdict:
        anew, moving = (_mean(evidence, name, lr, batch, momentum) for name in ("anew", "moving"))
        return self.part(
            evidence,
            anew - moving,
            endpoint=endpoint or f"Anew less moving, rate {lr:g}, batch {batch}, momentum {momentum:g}",
            reason=f"{typical(anew)} anew, {typical(moving)} with moving averages.",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the three accuracies over steps in two corners."""
        words = {"moving": "moving averages", "anew": "estimated anew", "own": "of the test data"}
        found = []
        for lr, batch, momentum in ((1.0, 8, 0.1), (0.1, 64, 0.01)):
            frame = evidence.select(probe="evaluated", lr=lr, batch=batch, momentum=momentum)
            found.append(
                curves(
                    frame.rename(
                        {"name": "statistics", "value": "accuracy"}
                    ),  # a wide frame: the name tells lines apart
                    y="accuracy",
                    by="statistics",
                    slug=f"rate-{lr:g}-{batch}".replace(".", "-"),
                    title=f"Test accuracy by statistics: rate {lr:g}, batches of {batch}, momentum {momentum:g}",
                    y_title="Test accuracy",
                    labels=words,
                    caption=self._corner(evidence, lr, batch, momentum).reason,
                )
            )
        return found

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate every corner."""
        rows = tuple(
            (
                f"{lr:g}",
                batch,
                f"{momentum:g}",
                *(typical(_mean(evidence, name, lr, batch, momentum)) for name in ("moving", "anew", "own")),
            )
            for lr in evidence.settings["lrs"]
            for batch in evidence.settings["batches"]
            for momentum in evidence.settings["momenta"]
        )
        columns = ("Learning rate", "Batch", "Momentum", "Moving averages", "Anew", "Of the test data")
        return [Table("Test accuracy, mean over steps", columns, rows)]


def _mean(evidence: Evidence, name: str, lr: float, batch: int, momentum: float) -> np.ndarray:
    frame = evidence.select(probe="evaluated", name=name, lr=lr, batch=batch, momentum=momentum)
    return evidence.per_seed(frame)
