"""Does the shift of batch norm overfit, beside the bias of the layer before?"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Record, Verdict
from normscope.studies.evidence import Evidence, typical
from normscope.studies.figures import apart
from normscope.studies.judging import equivalent, exact, with_parts
from normscope.studies.lab.arms import batch_norm, network
from normscope.studies.lab.evaluate import accuracy, population_statistics
from normscope.studies.lab.labels import in_double, with_wrong_labels
from normscope.studies.training import AbstractTraining

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset, Split

ARMS = {
    "bias, gamma, beta": (True, True, True),
    "gamma, beta": (False, True, True),
    "gamma": (False, True, False),
    "beta": (False, False, True),
    "neither": (False, False, False),
}


class BetaOverfits(AbstractTraining):
    r"""The shift of batch norm increases overfitting, most of all beside a bias.

    ## Claim
    Beta is one more bias; stacked on a layer with a bias it increases overfitting, so the bias of the previous layer
    should be removed (answer to "What is the effect of batch normalization on the gradient?"). No source is given
    there; the bias before batch norm is inert (see bias-before-bn-redundant).

    ## Method
    Few examples (100 and 300), a fifth of the training labels replaced at random, dense networks of three hidden layers
    of 100 trained until they interpolate. Five arms: with bias, gamma and beta; without the bias; with gamma alone;
    with beta alone; with neither. Primary endpoint: the generalisation gap (training less test accuracy, both in eval
    mode on population statistics, the training one with its wrong labels) with gamma and beta less that with gamma
    alone, 100 examples; supported above half a percentage point. Test accuracy alike is a part (two one-sided tests),
    and whether runs with and without the bias are the same run, to 1e-6 of the loss, in float64.

    ## Prediction
    Refuted on both parts: C more parameters beside C^2 weights make no difference, and the bias changes nothing at all.

    ## Threats
    With 100 examples the gap scatters widely over seeds: inconclusive is likely at half a point. Where every run
    interpolates the gap is only the test error.
    """

    CODE = "beta-overfits"
    CARD = 26
    TOPIC = "affine"
    SOURCES = ("Q&A on the gradient, answer on overfitting", "Ioffe & Szegedy 2015 (arXiv:1502.03167), section 3.2")
    CLAIM = "Beta, as one more bias, increases overfitting."
    ENDPOINT = "Gap between training and test accuracy with gamma and beta, less that with gamma alone"
    MARGIN = 0.005
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "sizes": [100, 300],
            "noise": 0.2,
            "batch": 50,
            "lr": 0.1,
            "steps": 300,
            "test": None,
        },
        "full": {
            "network": {"name": "vgg-a"},
            "sizes": [5000],
            "noise": 0.2,
            "batch": 128,
            "lr": 0.1,
            "steps": 15000,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every arm at every number of examples."""
        for size in settings["sizes"]:
            for arm in ARMS:
                yield arm, {"examples": size}

    def network(self, cell: Cell, data: "Dataset", device: str) -> nn.Module:
        """Return the network of an arm, in float64."""
        bias, gain, shift = ARMS[cell.arm]
        factory = batch_norm(learn_gain=gain, learn_shift=shift, dtype=torch.float64)
        sizes = {"bias": bias} if cell.settings["network"]["name"] == "mlp" else {}
        return network(cell, data, factory, device, **sizes).double()

    def split(self, cell: Cell, data: "Dataset", device: str) -> "Split":
        """Return few examples, some with wrong labels, in float64."""
        size = int(cell.point["examples"])
        split = data.split(cell.seed, train=size, test=cell.settings["test"]).to(device)
        return in_double(with_wrong_labels(split, float(cell.settings["noise"]), cell.seed))

    def after(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Evaluate on what it was trained on."""
        steps = int(cell.settings["steps"])
        with population_statistics(model, split.x_train), torch.no_grad():
            yield Record(
                cell.id, steps, "training", "", "train_accuracy", accuracy(model(split.x_train), split.y_train)
            )

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the gap; test accuracy and the inert bias are parts."""
        sizes = evidence.settings["sizes"]
        primary = self._gap(evidence, sizes[0])
        parts = [self._gap(evidence, size) for size in sizes[1:]]
        for size in sizes:
            both, gain = (_test(evidence, arm, size) for arm in ("gamma, beta", "gamma"))
            parts.append(
                equivalent(
                    self,
                    evidence,
                    both - gain,
                    self.MARGIN,
                    claim="Beta makes no difference to test accuracy.",
                    endpoint=f"Test accuracy with gamma and beta less with gamma, {size} examples",
                    reason=f"{typical(both)} with beta, {typical(gain)} without.",
                )
            )
        parts.append(
            exact(
                self,
                evidence,
                apart(evidence, "bias, gamma, beta", "gamma, beta", examples=sizes[0]),
                1e-6,
                claim="A bias before batch norm changes nothing.",
                endpoint="Largest difference of the losses of runs with and without the bias",
            )
        )
        return with_parts(primary, parts)

    def _gap(self, evidence: Evidence, size: int) -> Verdict:
        both, gain = (
            evidence.last("train_accuracy", arm=arm, examples=size) - _test(evidence, arm, size)
            for arm in ("gamma, beta", "gamma")
        )
        return self.part(
            evidence,
            both - gain,
            endpoint=f"{self.ENDPOINT}, {size} examples",
            reason=f"The gap is {typical(both)} with gamma and beta, {typical(gain)} with gamma alone, at {size} "
            f"examples of which {evidence.settings['noise']:.0%} have random labels.",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the training loss of all arms."""
        size = evidence.settings["sizes"][0]
        return [
            curves(
                evidence.select(probe="training", examples=size),
                y="loss",
                slug="loss",
                title=f"Training loss on {size} examples",
                y_title="Cross-entropy of the step's batch",
                log=True,
                caption=evidence.final_losses({arm: arm for arm in ARMS}, examples=size),
            ),
            curves(
                evidence.select(probe="training", name="test_accuracy"),
                y="test_accuracy",
                x="examples",
                slug="accuracy-by-size",
                title="Test accuracy at the end, by number of training examples",
                x_title="Training examples",
                y_title="Test accuracy",
                caption="; ".join(
                    f"{arm}: " + ", ".join(typical(_test(evidence, arm, size)) for size in evidence.settings["sizes"])
                    for arm in ARMS
                )
                + ".",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate how the arms end."""
        rows = tuple(
            (
                size,
                arm,
                typical(evidence.last("train_accuracy", arm=arm, examples=size)),
                typical(_test(evidence, arm, size)),
                typical(evidence.last("test_loss", arm=arm, examples=size)),
            )
            for size in evidence.settings["sizes"]
            for arm in ARMS
        )
        columns = ("Examples", "Arm", "Training accuracy", "Test accuracy", "Test loss")
        return [Table("How the arms end", columns, rows, f"Means over {len(evidence.seeds)} seeds.")]


def _test(evidence: Evidence, arm: str, size: int) -> np.ndarray:
    return evidence.last("test_accuracy", arm=arm, examples=size)
