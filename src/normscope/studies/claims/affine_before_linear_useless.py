"""Gamma and beta before a linear layer: are they useless?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Record, Verdict
from normscope.studies.evidence import Evidence, typical
from normscope.studies.figures import accuracy, loss_figure, reached
from normscope.studies.judging import equivalent, exact, with_parts
from normscope.studies.lab.arms import batch_norm, network, recorder
from normscope.studies.lab.models import Place
from normscope.studies.lab.streams import generator
from normscope.studies.training import AbstractTraining

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

ARMS = {
    "gamma and beta": (True, True),
    "gamma": (True, False),
    "beta": (False, True),
    "neither": (False, False),
}
PLACES = {"linear": "then a linear layer", "relu": "then a rectifier", "tanh": "then tanh"}
SIZES = (8, 28, 32)


class _ActivationFirst(nn.Module):
    """An activation, then batch norm: what follows is the next block's linear layer."""

    stackable = True

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the two in turn."""
        out: torch.Tensor = self.norm(torch.relu(x))
        return out


class AffineBeforeLinearUseless(AbstractTraining):
    r"""Gamma and beta are useless where batch norm is followed by a linear layer.

    ## Claim
    Gamma and beta are completely useless when batch norm is followed by a linear layer; "not sure about convolution"
    (comment under "How does the batch normalization layer work?"). Goodfellow et al. 2016, section 8.7.1: the same
    family of functions, but other learning dynamics.

    ## Method
    In float64: the largest difference between a network with gamma and beta and one with gamma in the next layer's
    weights and beta in its bias, for a linear layer, for a valid convolution (primary: both below 1e-12 in every seed),
    and for a convolution with zero padding: the share of output positions that differ, against theory. With a rectifier
    between, gamma can be moved on (positive gammas) and beta cannot. Dynamics: networks with gamma and beta, one of
    them, or neither, where the norm is followed by a linear layer, a rectifier or tanh: test accuracy alike within half
    a point, and steps to 90 % within 10 % (two one-sided tests).

    ## Prediction
    Exact for linear layers and valid convolutions; false for zero-padded ones, where beta makes a border: 43.8 % of the
    positions of 8x8, 13.8 % of 28x28, 12.1 % of 32x32 with 3x3 kernels. Dynamics differ by less than half a point.

    ## Threats
    Same function is not the same training: a step in gamma times W is another step than one in W. Ten seeds may not
    be enough to show accuracies alike within half a point.
    """

    CODE = "affine-before-linear-useless"
    CARD = 4
    TOPIC = "affine"
    SOURCES = (
        "Q&A on the layer, comment on gamma and beta",
        "Goodfellow, Bengio and Courville 2016, section 8.7.1",
        "Page 2019, How to Train Your ResNet 7: Batch Norm (myrtle.ai)",
    )
    CLAIM = "Before a linear layer gamma and beta add no function that the layer cannot make itself."
    ENDPOINT = "Difference after moving gamma and beta into the next linear layer or valid convolution"
    MARGIN = 0.0
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "batch": 64,
            "lr": 0.1,
            "steps": 200,
            "train": None,
            "test": None,
        },
        "full": {
            "network": {"name": "vgg-a"},
            "batch": 128,
            "lr": 0.1,
            "steps": 15000,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the algebra, and every arm in every place."""
        yield "algebra", {"place": "none"}
        for place in PLACES:
            for arm in ARMS:
                yield arm, {"place": place}

    def network(self, cell: Cell, data: "Dataset", device: str) -> nn.Module:
        """Return the network of an arm."""
        gain, shift = ARMS[cell.arm]
        factory = batch_norm(learn_gain=gain, learn_shift=shift)
        place = str(cell.point["place"])

        def make(where: Place) -> nn.Module:
            return _ActivationFirst(factory(where)) if place == "linear" else factory(where)

        options = {"activation": "linear" if place == "linear" else place}
        return network(cell, data, make, device, **options)

    def trains(self, cell: Cell) -> bool:
        """All but the algebra, which is measured."""
        return cell.arm != "algebra"

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Measure the algebra, or train one arm."""
        return super().run_cell(cell, data, device) if self.trains(cell) else _algebra(cell)

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the function class; padding, rectifiers and dynamics are parts."""
        errors = np.maximum(_seen(evidence, "linear"), _seen(evidence, "valid"))
        primary = exact(self, evidence, errors, 1e-12, claim=self.CLAIM, endpoint=self.ENDPOINT, primary=True)
        parts = [
            exact(
                self,
                evidence,
                _seen(evidence, "padded"),
                1e-9,
                claim="Before a zero-padded convolution gamma and beta add no function either.",
                endpoint="Difference after moving gamma and beta into a zero-padded convolution",
            ),
            exact(
                self,
                evidence,
                _seen(evidence, "rectified_gamma"),
                1e-12,
                claim="Before a rectifier a positive gamma can be moved into the next layer.",
                endpoint="Difference after moving gamma through the rectifier, beta divided by it",
            ),
        ]
        for place, words in PLACES.items():
            both, neither = (accuracy(evidence, arm, place=place) for arm in ("gamma and beta", "neither"))
            parts.append(
                equivalent(
                    self,
                    evidence,
                    both - neither,
                    0.005,
                    claim=f"Gamma and beta make no difference to test accuracy: norm, {words}.",
                    endpoint=f"Test accuracy with less without gamma and beta, norm {words}",
                    reason=f"{typical(both)} with, {typical(neither)} without.",
                )
            )
            fast, slow = (reached(evidence, arm, 0.9, place=place)[0] for arm in ("gamma and beta", "neither"))
            parts.append(
                equivalent(
                    self,
                    evidence,
                    np.log(slow) - np.log(fast),
                    math.log(1.1),
                    scale="log-ratio",
                    claim=f"Gamma and beta make no difference to the speed of training: norm, {words}.",
                    endpoint=f"Steps to 90 % without over with gamma and beta, norm {words}",
                    reason=f"{typical(fast)} steps with, {typical(slow)} without.",
                )
            )
        shares = ", ".join(f"{100 * _border(evidence, n):.1f} % of {n}x{n}" for n in SIZES)
        return with_parts(
            primary, parts, f"Before a zero-padded 3x3 convolution beta cannot be moved: it differs at {shares}."
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the loss of the arms before a linear layer and before a rectifier."""
        words = {arm: arm for arm in ARMS}
        return [
            loss_figure(evidence, words, f"Training loss, norm {PLACES['linear']}", place="linear"),
            curves(
                evidence.select(probe="training", place="relu"),
                y="loss",
                slug="loss-relu",
                title=f"Training loss, norm {PLACES['relu']}",
                y_title="Cross-entropy of the step's batch",
                log=True,
                caption=evidence.final_losses(words, place="relu"),
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the border against theory, and how the arms end."""
        rows = tuple(
            (f"share of positions at the border, {n}x{n}", f"{_border(evidence, n):.4f}",
             f"{1 - ((n - 2) / n) ** 2:.4f}", f"{_border(evidence, n) / (1 - ((n - 2) / n) ** 2):.4f}")
            for n in SIZES
        )  # fmt: skip
        ends = tuple(
            (words, arm, typical(reached(evidence, arm, 0.9, place=place)[0]),
             typical(accuracy(evidence, arm, place=place)))
            for place, words in PLACES.items()
            for arm in ARMS
        )  # fmt: skip
        return [
            Table("Against theory", ("Quantity", "Measured", "Theory", "Ratio"), rows),
            Table("How the arms end", ("Norm", "Learnt", "Steps to 90 %", "Test accuracy"), ends),
        ]


def _seen(evidence: Evidence, name: str) -> np.ndarray:
    return evidence.per_seed(evidence.select(probe="algebra", name=name))


def _border(evidence: Evidence, size: int) -> float:
    return float(np.nanmean(_seen(evidence, f"border_{size}")))


def _algebra(cell: Cell) -> Iterator[Record]:
    record, stream = recorder(cell, "algebra"), generator(cell.seed, "algebra")

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=stream, dtype=torch.float64)

    def off(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).abs().max() / b.abs().max())

    gamma, beta = 0.5 + draw(12).abs(), draw(12)
    x, weight, bias = draw(40, 12), draw(7, 12), draw(7)
    z = (x - x.mean(0)) / x.var(0, correction=0).sqrt()
    yield record(
        "linear", off(F.linear(z, weight * gamma, bias + weight @ beta), F.linear(gamma * z + beta, weight, bias))
    )
    rectified = F.linear(torch.relu(gamma * z + beta), weight, bias)
    yield record("rectified_gamma", off(F.linear(torch.relu(z + beta / gamma), weight * gamma, bias), rectified))
    kernel = draw(7, 12, 3, 3)
    moved, more = kernel * gamma[:, None, None], bias + (kernel.sum((2, 3)) @ beta)
    for size in SIZES:
        image = draw(4, 12, size, size)
        affine = gamma[:, None, None] * image + beta[:, None, None]
        padded = F.conv2d(image, moved, more, padding=1)
        right = F.conv2d(affine, kernel, bias, padding=1)
        if size == SIZES[0]:
            yield record("valid", off(F.conv2d(image, moved, more), F.conv2d(affine, kernel, bias)))
            yield record("padded", off(padded, right))
        wrong = ((padded - right).abs() > 1e-9 * right.abs().max()).any(1)
        yield record(f"border_{size}", wrong.double().mean())
