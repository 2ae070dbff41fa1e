"""Does the shift of batch norm overfit, beside the bias of the layer before?"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.studies import AbstractTraining, Arm, Contrast, Evidence, Quantity, accuracy, last, presets
from normscope.studies.lab.arms import batch_norm, recorder
from normscope.studies.lab.data import Dataset, Split
from normscope.studies.lab.evaluate import accuracy as share_right, population_statistics
from normscope.studies.lab.labels import in_double, with_wrong_labels


def _arm(words: str, *, gain: bool, shift: bool) -> Arm:
    return Arm(words, batch_norm(learn_gain=gain, learn_shift=shift, dtype=torch.float64))


def _gap(evidence: Evidence, **where: Any) -> np.ndarray:
    return evidence.last("train_accuracy", **where) - evidence.last("test_accuracy", **where)


class BetaOverfits(AbstractTraining):
    r"""The shift of batch norm increases overfitting, most of all beside a bias.

    ## Claim
    Beta is one more bias; stacked on a layer with a bias it increases overfitting, so the bias of the previous layer
    should be removed (answer to "What is the effect of batch normalization on the gradient?"). No source is given
    there; the bias before batch norm is inert (see bias-before-bn-redundant).

    ## Method
    Few examples (100 and 300), a fifth of the training labels replaced at random, dense networks of three hidden layers
    of 100 trained until they interpolate. Five arms: with bias, gamma and beta; without the bias; with gamma alone;
    with beta alone; with neither. The headline is the generalisation gap (training less test accuracy, both in eval
    mode on population statistics, the training accuracy with its wrong labels) with gamma and beta less that with gamma
    alone, 100 examples. Also tried: 300 examples, and beta alone against neither. Two claims of their own: test
    accuracy is alike with and without beta (two one-sided tests), and runs with and without the bias before the norm
    are the same run, to 1e-6 of the loss, in float64.

    ## Prediction
    No effect that matters: C more parameters beside C^2 weights make no difference. The bias changes nothing at all.

    ## Threats
    With 100 examples the gap scatters widely over seeds, so ten seeds may leave half a point unclear; a run that may be
    extended takes twenty. Where every run interpolates the gap is only the test error.
    """

    CODE = "beta-overfits"
    CARD = 26
    TOPIC = "affine"
    SOURCES = ("Q&A on the gradient, answer on overfitting", "Ioffe & Szegedy 2015 (arXiv:1502.03167), section 3.2")
    CLAIM = "Beta, as one more bias, increases overfitting."
    ON_A_CASE = "no arm leaves out shifts alone"
    ENDPOINT = "Gap between training and test accuracy, with gamma and beta less with gamma alone, 100 examples"
    MARGIN = 0.005
    MARGIN_REASON = "half a point is one or two of the 300 test images"
    ARMS = {
        "bias, gamma, beta": _arm("bias, gamma and beta", gain=True, shift=True),
        "gamma, beta": _arm("gamma and beta", gain=True, shift=True),
        "gamma": _arm("gamma alone", gain=True, shift=False),
        "beta": _arm("beta alone", gain=False, shift=True),
        "neither": _arm("neither", gain=False, shift=False),
    }
    POINTS = {"examples": "sizes"}
    CONDITIONS = {"examples": "{} examples"}
    VARIES = {"examples": "number of examples"}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "sizes": [100, 300],
            "noise": 0.2,
            "batch": 50,
            "lr": 0.1,
            "steps": 300,
            "test": None,
        },
        full={"network": {"name": "vgg-a"}, "sizes": [5000], "batch": 128, "steps": 15000},
    )

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return whether there are biases before the norms, which convolutions never have."""
        return {"bias": cell.arm.startswith("bias")} if cell.settings["network"]["name"] == "mlp" else {}

    def network(self, cell: Cell, data: Dataset, device: str) -> nn.Module:
        """Return the network of an arm, in float64."""
        return super().network(cell, data, device).double()

    def split(self, cell: Cell, data: Dataset, device: str) -> Split:
        """Return few examples, some with wrong labels, in float64."""
        size = int(cell.point["examples"])
        split = data.split(cell.seed, train=size, test=cell.settings["test"]).to(device)
        return in_double(with_wrong_labels(split, float(cell.settings["noise"]), cell.seed))

    def after(self, cell: Cell, model: nn.Module, split: Split) -> Iterable[Record]:
        """Evaluate on what it was trained on."""
        with population_statistics(model, split.x_train), torch.no_grad():
            right = share_right(model(split.x_train), split.y_train)
            yield recorder(cell, "training")("train_accuracy", right, int(cell.settings["steps"]))

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the gap, then test accuracy, beside gamma and without it; and the inert bias."""
        sizes = evidence.settings["sizes"]
        pairs = {"with gamma": ("gamma, beta", "gamma"), "without gamma": ("beta", "neither")}
        for gamma, (with_beta, without) in pairs.items():
            for size in sizes:
                yield Contrast(
                    GAP,
                    with_beta,
                    without,
                    at={"examples": size},
                    conditions={"other parameters": gamma},
                    labels=("with beta", "without"),
                    name=f"{size} examples" if gamma == "with gamma" else f"{size} examples, {gamma}",
                    says="beta makes the gap between training and test accuracy {effect}",
                    comparative=("wider", "narrower"),
                )
        for gamma, (with_beta, without) in pairs.items():
            for size in sizes:
                yield Contrast(
                    TEST,
                    with_beta,
                    without,
                    at={"examples": size},
                    conditions={"other parameters": gamma},
                    labels=("with beta", "without"),
                    equal_within=self.MARGIN,
                    claim="Test accuracy is alike with and without beta.",
                    name=f"accuracy, {size} examples" + ("" if gamma == "with gamma" else f", {gamma}"),
                    says="with beta the test accuracy is {effect}",
                    comparative=("higher", "lower"),
                )
        yield Contrast(
            Quantity("largest difference of the losses of runs with and without the bias", _apart),
            at={"examples": sizes[0]},
            exact_within=1e-6,
            claim="A bias before batch norm changes nothing.",
            name="bias",
            says="with the bias the losses are those without it, {effect}",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the training loss of all arms, and accuracy by the number of examples."""
        return [
            self.curves(evidence, "loss", at={"examples": evidence.settings["sizes"][0]}, slug="loss"),
            self.curves(
                evidence,
                "test_accuracy",
                x="examples",
                slug="accuracy-by-size",
                title="Test accuracy at the end, by number of training examples",
                x_title="Training examples",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate how the arms end."""
        return [
            self.grid_table(
                [last("train_accuracy", "training accuracy at the end"), TEST, last("test_loss")],
                evidence,
                rows={"examples": evidence.settings["sizes"], "arm": list(self.ARMS)},
                title="How the arms end",
                caption=f"Means over {len(evidence.seeds)} seeds; {evidence.settings['noise']:.0%} of the training "
                "labels are random.",
            )
        ]


TEST = accuracy()
GAP = Quantity("gap between training and test accuracy", _gap, unit="points", held_out=True)


def _apart(evidence: Evidence, **where: Any) -> np.ndarray:
    return evidence.loss_difference("bias, gamma, beta", "gamma, beta", **where)
