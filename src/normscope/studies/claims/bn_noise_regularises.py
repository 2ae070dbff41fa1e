"""The noise of batch statistics: does it regularise, and is it all that batch norm does?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from normscope import layers
from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Verdict
from normscope.stats import slope_per_seed
from normscope.studies.evidence import Evidence, typical
from normscope.studies.figures import accuracy, ends_table, loss_figure, reached
from normscope.studies.judging import conjunction
from normscope.studies.lab import norms
from normscope.studies.lab.arms import network, split_of
from normscope.studies.lab.labels import with_wrong_labels
from normscope.studies.lab.models import Place
from normscope.studies.training import AbstractTraining

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset, Split

SPEED = {"none": "no batch norm", "batch": "batch norm", "population": "population statistics, no noise"}


class _Population(nn.Module):
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
    statistics: batch norm without noise); dropout beside. Primary, both must hold: test accuracy with the best ghost
    size, chosen on validation data, less that without noise, above half a percentage point; and the slope of log test
    loss on the log of the ghost size, above 0 (the more noise, the lower the loss). Parts: the two by themselves,
    dropout, and "only": on a network of ten layers at learning rate 0.3, the share of the gain in steps over no norm
    that population statistics keep: "only the noise" is supported below 30 %, refuted above 70 %.

    ## Prediction
    A mild gain at 16 to 64, a loss at 4 to 8, where train and test differ too much: the slope then is not positive
    over all sizes, and the whole claim is not supported although its first half is. "Only" is clearly refuted.

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
    ENDPOINT = "Test accuracy with the best ghost size less without noise, and slope of log test loss on log ghost size"
    MARGIN = 0.005
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
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
        "full": {
            "network": {"name": "vgg-a"},
            "deep": 20,
            "ghosts": [4, 8, 16, 32, 64, 128, 256],
            "dropouts": [0.1, 0.3, 0.5],
            "noise": 0.2,
            "batch": 256,
            "lr": 0.1,
            "fast": 0.3,
            "steps": 15000,
            "train": 5000,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the ghost sizes, population statistics and dropout; then the deep network's three arms."""
        for size in settings["ghosts"]:
            yield f"ghost {size}", {"task": "noise", "size": size}
        yield "population", {"task": "noise", "size": 0}
        for share in settings["dropouts"]:
            yield f"dropout {share:g}", {"task": "noise", "size": 0}
        for arm in SPEED:
            yield arm, {"task": "speed", "size": 0}

    def network(self, cell: Cell, data: "Dataset", device: str) -> nn.Module:
        """Return the network of an arm."""
        settings = cell.settings
        kind, _, number = cell.arm.partition(" ")
        if cell.point["task"] == "speed":
            factory = norms.none() if cell.arm == "none" else norms.batch()
            deep = {"depth": int(settings["deep"])} if settings["network"]["name"] == "mlp" else {}
            model: nn.Module = network(cell, data, factory, device, **deep)
        else:
            model = network(cell, data, _factory(kind, number), device)
        if kind == "population":
            model = _Population(model, self.split(cell, data, device).x_train).train()
        return model

    def split(self, cell: Cell, data: "Dataset", device: str) -> "Split":
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

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the best ghost size against no noise, and the slope over sizes; dropout and "only" are parts."""
        ghosts = evidence.settings["ghosts"]

        def ends(arm: str, name: str = "test_accuracy") -> np.ndarray:
            return accuracy(evidence, arm, name, task="noise")

        best = max((f"ghost {size}" for size in ghosts), key=lambda arm: float(ends(arm, "val_accuracy").mean()))
        gain = self.part(
            evidence,
            ends(best) - ends("population"),
            claim="Some ghost size gives a better test accuracy than no noise.",
            endpoint="Test accuracy with the best ghost size less with noise-free population statistics",
            reason=f"{typical(ends(best))} with {best}, the best on validation data, {typical(ends('population'))} "
            "without noise.",
        )
        losses = np.array([np.log(evidence.last("test_loss", arm=f"ghost {size}", task="noise")) for size in ghosts])
        slopes = slope_per_seed(np.log(np.array(ghosts, dtype=np.float64)), losses.T)
        slope = self.part(
            evidence,
            slopes,
            scale="value",
            margin=0.0,
            claim="The more noise, the lower the test loss.",
            endpoint="Slope of log test loss on the log of the ghost size",
            reason=f"The slope of log test loss on log ghost size is {typical(slopes)}.",
        )
        parts = [gain, slope]
        for share in evidence.settings["dropouts"]:
            arm = f"dropout {share:g}"
            parts.append(
                self.part(
                    evidence,
                    ends(best) - ends(arm),
                    claim=f"The noise of batch statistics regularises better than dropout of {share:g}.",
                    endpoint=f"Test accuracy with the best ghost size less with dropout {share:g} and no norm",
                    reason=f"{typical(ends(best))} against {typical(ends(arm))}.",
                )
            )
        parts.append(self._only(evidence))
        outcome, p, decisive = conjunction([gain, slope], 1 - evidence.level)
        return self.verdict(
            outcome,
            decisive.effect,
            margin=decisive.margin,
            reason=f"{gain.reason} {slope.reason} {parts[-1].reason}",
            p_value=p,
            primary=True,
            parts=parts,
        )

    def _only(self, evidence: Evidence) -> Verdict:
        none, batch, population = (reached(evidence, arm, 0.9, task="speed")[0] for arm in SPEED)
        gain = float((none - batch).mean())
        kept = (none - population) / gain if gain > 0 else np.full(len(none), math.nan)
        return self.part(
            evidence,
            0.3 - kept,
            scale="value",
            margin=0.0,
            refuted_below=0.3 - 0.7,
            claim="Noise is the only help that batch norm gives to training.",
            endpoint="0.3 less the share of the gain in steps to 90 % that is kept without noise",
            reason=f"Steps to 90 % at learning rate {evidence.settings['fast']:g}: {typical(none)} without norm, "
            f"{typical(batch)} with batch norm, {typical(population)} with population statistics: without noise "
            f"{typical(kept)} of the gain is kept.",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw test loss by ghost size, and the loss of the three arms."""
        population = evidence.last("test_loss", arm="population", task="noise")
        return [
            curves(
                evidence.select(probe="training", name="test_loss", task="noise").filter(
                    evidence.select(probe="training", name="test_loss", task="noise")["size"] > 0
                ),
                y="test_loss",
                x="size",
                by="name",
                slug="by-ghost",
                title="Test loss by ghost size",
                x_title="Samples in a ghost group",
                y_title="Cross-entropy on test data",
                log_x=True,
                labels={"test_loss": "ghost statistics"},
                reference={"no noise": float(np.nanmean(population))},
                caption=", ".join(
                    f"{typical(evidence.last('test_loss', arm=f'ghost {size}', task='noise'))} at {size}"
                    for size in evidence.settings["ghosts"]
                )
                + f"; {typical(population)} without noise.",
            ),
            loss_figure(evidence, SPEED, "Training loss of the deep network", task="speed"),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate how the arms end."""
        arms = [f"ghost {size}" for size in evidence.settings["ghosts"]] + ["population"]
        arms += [f"dropout {share:g}" for share in evidence.settings["dropouts"]]
        return [ends_table(evidence, {arm: arm for arm in arms}, task="noise")]


def _factory(kind: str, number: str) -> norms.Factory:
    if kind == "dropout":
        return lambda place: nn.Dropout(float(number))
    if kind == "population":
        return norms.batch()

    def make(place: Place) -> nn.Module:
        layer = layers.BatchNorm2d if place.spatial else layers.BatchNorm1d
        return layer(place.features, statistics="ghost", group_size=int(number))

    return make
