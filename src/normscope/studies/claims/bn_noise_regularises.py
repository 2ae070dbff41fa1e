"""The noise of batch statistics: does it regularise, and is it all that batch norm does?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from normscope import layers
from normscope.plots import Figure, Table
from normscope.records import Cell
from normscope.stats import slope_per_seed
from normscope.studies import (
    AbstractTraining,
    Arm,
    Contrast,
    Evidence,
    Quantity,
    accuracy,
    last,
    presets,
    steps_to,
)
from normscope.studies.case_question import CaseQuestion
from normscope.studies.figures import ends_table
from normscope.studies.lab import norms
from normscope.studies.lab.arms import split_of
from normscope.studies.lab.data import Dataset, Split
from normscope.studies.lab.labels import with_wrong_labels
from normscope.studies.lab.models import Place

STEPS, TEST_LOSS = steps_to(0.9), last("test_loss")
HIGHER = ("higher", "lower")


class PopulationNormalized(nn.Module):
    """Trains a network whose batch norms use the statistics of the whole training set, differentiably: no noise."""

    def __init__(self, inner: nn.Module, everything: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.everything = [everything]  # in a list: not a buffer, which evaluation would copy

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs to logits."""
        if not self.training:
            return self.inner(x)
        with layers.population_of(self.inner, self.everything[0]):
            return self.inner(x)


class BnNoiseRegularises(AbstractTraining):
    r"""The noise of batch statistics regularises; and it is the only help that batch norm gives.

    ## Claim
    Batch norm's help to the gradient is the noise of mini-batches, which regularises like dropout (answer to "What is
    the effect of batch normalization on the gradient?", which says "only"; Ioffe & Szegedy 2015, section 3.4; Luo et
    al. 2019, second hand).

    ## Method
    Few examples, a fifth of the labels wrong, three hidden layers of 100. The same batches of SGD with statistics over
    ghost groups of 4 to 128 samples, or over the whole training set at every step, differentiated through (population
    statistics: batch norm without noise); dropout beside. The headline is test accuracy with the best ghost size,
    chosen on validation data, less that without noise. Three claims of their own: the more noise, the lower the test
    loss (the slope of log test loss on the log of the ghost size); batch norm's noise gives a better test accuracy than
    dropout in a network without a norm; and "only": on a network of ten layers at learning rate 0.3, batch norm without
    its noise takes as many steps to 90 % of the way to the best accuracy as no norm does. The last says something only
    where batch norm with its noise gains over no norm, and its sentence names the share of that gain that is kept.

    ## Prediction
    A mild gain at 16 to 64, a loss at 4 to 8, where train and test differ too much: the slope then is not positive
    over all sizes. "Only" is false in plain words: without noise nearly all of the gain in steps is kept.

    ## Threats
    The noise of a ghost size (1.5/m of the variance) comes with a gap between training and evaluation, so small sizes
    are judged for both. Few examples and wrong labels are the setting in which regularisation shows most.
    """

    CODE = "bn-noise-regularises"
    CARD = 25
    TOPIC = "noise"
    SOURCES = (
        "Q&A on the gradient, answer on mini-batch noise",
        "Ioffe & Szegedy 2015 (arXiv:1502.03167), sections 3.4 and 4.2.1",
        "Luo et al. 2019 (arXiv:1809.00846), second hand",
        "Hoffer et al. 2017 (arXiv:1705.08741), table from memory",
    )
    CLAIM = "The noise of batch statistics regularises."
    ON_A_CASE = CaseQuestion(
        "generalisation", ("own", "population"), differs="the rise of the loss in place of accuracy"
    )
    ENDPOINT = "Test accuracy with the best ghost size (chosen on validation data) less without noise"
    MARGIN = 0.005
    MARGIN_REASON = "half a point is one or two of the 300 test images"
    #: Of the task "speed". The arms of the task "noise" are ghost sizes, population statistics and shares of dropout.
    ARMS = {
        "none": Arm("no batch norm", norms.none()),
        "batch": Arm("batch norm", norms.batch()),
        "population": Arm("population statistics (no noise)", norms.batch()),
    }
    CONDITIONS = {"task": ""}
    VARIES = {"arms": "share of dropout"}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "deep": 10,
            "ghosts": [4, 8, 16, 32, 64, 128],
            "dropouts": [0.1, 0.3],
            "noise": 0.2,
            "batch": 128,
            "lr": 0.1,
            "fast": 0.3,
            "steps": 200,
            "train": 300,
            "test": None,
        },
        full={
            "network": {"name": "vgg-a"},
            "deep": 20,
            "ghosts": [4, 8, 16, 32, 64, 128, 256],
            "dropouts": [0.1, 0.3, 0.5],
            "batch": 256,
            "steps": 15000,
            "train": 5000,
        },
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the ghost sizes, population statistics and dropout; then the deep network's three arms."""
        for size in settings["ghosts"]:
            yield f"ghost {size}", {"task": "noise", "size": size}
        for arm in ("population", *_dropouts(settings)):
            yield arm, {"task": "noise", "size": 0}
        for arm in self.ARMS:
            yield arm, {"task": "speed", "size": 0}

    def norm(self, cell: Cell) -> norms.Factory:
        """Return the arm's norm, or its dropout."""
        kind, _, number = cell.arm.partition(" ")
        if kind == "dropout":
            return lambda place: nn.Dropout(float(number))
        return _ghost(int(number)) if kind == "ghost" else super().norm(cell)

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return the depth at which speed is compared."""
        deep = cell.point["task"] == "speed" and cell.settings["network"]["name"] == "mlp"
        return {"depth": int(cell.settings["deep"])} if deep else {}

    def network(self, cell: Cell, data: Dataset, device: str) -> nn.Module:
        """Return the network of an arm."""
        model = super().network(cell, data, device)
        if cell.arm == "population":
            return PopulationNormalized(model, self.split(cell, data, device).x_train).train()
        return model

    def split(self, cell: Cell, data: Dataset, device: str) -> Split:
        """Return the data, with wrong labels where regularisation is asked about."""
        split = split_of(cell, data, device)
        if cell.point["task"] == "speed":
            return split
        return with_wrong_labels(split, float(cell.settings["noise"]), cell.seed)

    def options(self, cell: Cell) -> dict[str, Any]:
        """Return the rate of the task."""
        return {"lr": float(cell.settings["fast" if cell.point["task"] == "speed" else "lr"])}

    def trains(self, cell: Cell) -> bool:
        """All but population statistics, a network of its own, and dropout, which draws from the global generator."""
        return cell.arm.partition(" ")[0] not in ("population", "dropout")

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the best ghost size against no noise; then the slope over sizes, dropout, and "only"."""
        best = max((f"ghost {size}" for size in evidence.settings["ghosts"]), key=lambda arm: _validated(evidence, arm))
        labels = (f"{best} (the best on validation data)", "")
        yield Contrast(
            accuracy(),
            best,
            "population",
            at={"task": "noise"},
            labels=labels,
            name="noise",
            says=f"test accuracy is {{effect}} with statistics of {best.partition(' ')[2]} samples than without noise",
            comparative=HIGHER,
        )
        yield Contrast(
            Quantity("growth of the test loss per doubling of the ghost size", _growth, logs=True),
            scale="log-ratio",
            margin=math.log(1.01),
            margin_reason="one percent a doubling makes five percent from the smallest to the largest size",
            claim="The more noise, the lower the test loss.",
            name="slope",
            says="the test loss grows {effect} with each doubling of the samples that share statistics",
        )
        for arm in _dropouts(evidence.settings):
            yield Contrast(
                accuracy(),
                best,
                arm,
                at={"task": "noise"},
                labels=labels,
                claim="The noise of batch statistics gives a better test accuracy than dropout without a norm.",
                name=arm,
                says=f"test accuracy is {{effect}} with the noise of batch norm than with {arm}",
                comparative=HIGHER,
            )
        fewer: dict[str, Any] = {"at": {"task": "speed"}, "scale": "log-ratio", "comparative": ("fewer", "more")}
        gains = Contrast(
            STEPS,
            "none",
            "batch",
            margin=math.log(1.5),
            margin_reason="as in fewer-iterations",
            claim="Batch norm with its noise takes fewer steps than no norm.",
            says="training takes {effect} steps with batch norm",
            **fewer,
        )
        yield Contrast(
            STEPS,
            "none",
            "population",
            equal_within=math.log(1.5),
            margin_reason="half (on a log scale) of the factor 2.3 that batch norm alone made in Ioffe & Szegedy 2015",
            claim="Noise is the only help that batch norm gives: without it training is as slow as without a norm.",
            name="only",
            says=f"batch norm without its noise still takes {{effect}} steps than no norm{_kept(evidence)}",
            premises=(gains,),
            **fewer,
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw test loss by ghost size, and the loss of the three arms."""
        sizes = evidence.settings["ghosts"]
        population = TEST_LOSS(evidence, arm="population", task="noise")
        return [
            self.curves(
                evidence,
                "test_loss",
                at={"task": "noise", "arm": [f"ghost {size}" for size in sizes]},
                x="size",
                by="name",
                slug="by-ghost",
                title="Test loss by ghost size",
                x_title="Samples in a ghost group",
                log=False,
                log_x=True,
                arms=None,
                labels={"test_loss": "ghost statistics"},
                reference={"no noise": float(np.nanmean(population))},
                caption=f"{TEST_LOSS.typical(population)} without noise.",
            ),
            self.curves(evidence, "loss", at={"task": "speed"}, slug="loss", title="Training loss of the deep network"),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate how the arms end, and the steps of the deep network."""
        ghosts = [f"ghost {size}" for size in evidence.settings["ghosts"]]
        noise = {arm: self.wording.side(arm) for arm in (*ghosts, "population", *_dropouts(evidence.settings))}
        return [
            ends_table(evidence, noise, task="noise"),
            self.grid_table(STEPS, evidence, rows={"arm": list(self.ARMS)}, at={"task": "speed"}),
        ]


def _dropouts(settings: Mapping[str, Any]) -> list[str]:
    return [f"dropout {share:g}" for share in settings["dropouts"]]


def _ghost(size: int) -> norms.Factory:
    def make(place: Place) -> nn.Module:
        layer = layers.BatchNorm2d if place.spatial else layers.BatchNorm1d
        return layer(place.features, statistics="ghost", group_size=size)

    return make


def _validated(evidence: Evidence, arm: str) -> float:
    """Return an arm's mean validation accuracy; a seed without one has none right."""
    return float(evidence.accuracy(arm, "val_accuracy", task="noise").mean())


def _growth(evidence: Evidence, **where: Any) -> np.ndarray:
    """Return per seed the log of the growth per doubling; NaN where a loss is missing."""
    ghosts = evidence.settings["ghosts"]
    losses = np.array([TEST_LOSS(evidence, arm=f"ghost {size}", task="noise") for size in ghosts]).T
    found = np.full(len(losses), np.nan)
    whole = np.isfinite(losses).all(1) & (losses > 0).all(1)
    if whole.any():
        found[whole] = slope_per_seed(np.log2(np.array(ghosts, dtype=np.float64)), np.log(losses[whole]))
    return found


def _kept(evidence: Evidence) -> str:
    """Say which share of batch norm's gain in steps is kept without noise; nothing where there is no gain."""
    none, batch, kept = (STEPS(evidence, arm=arm, task="speed") for arm in ("none", "batch", "population"))
    gain = float((none - batch).mean())
    return f", {100 * float((none - kept).mean()) / gain:.0f} % of the gain with noise" if gain > 0 else ""
