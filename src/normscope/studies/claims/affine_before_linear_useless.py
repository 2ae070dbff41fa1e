"""Gamma and beta before a linear layer: are they useless?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.studies import (
    AbstractTraining,
    Arm,
    Contrast,
    Evidence,
    Quantity,
    accuracy,
    mean,
    presets,
    steps_to,
    typical,
)
from normscope.studies.case_question import IDENTITY
from normscope.studies.figures import theory_table
from normscope.studies.lab.arms import batch_norm, recorder
from normscope.studies.lab.data import Dataset
from normscope.studies.lab.models import Place
from normscope.studies.lab.norms import Factory
from normscope.studies.lab.streams import generator

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
    In float64: the largest difference between a network with gamma and beta and a network with gamma in the next
    layer's weights and beta in its bias, for a linear layer and for a valid convolution. That is an identity, exact if
    both differences are below 1e-12 in every seed. The same for a convolution with zero padding is a claim of its own:
    the share of output positions that differ stands against theory. With a rectifier between, gamma can be moved on
    (positive gammas) and beta cannot. Dynamics, also claims of their own: networks with gamma and beta, one of them, or
    neither, where the norm is followed by a linear layer, a rectifier or tanh: test accuracy alike within half a point,
    and steps to 90 % of the way to the best training accuracy alike within 10 % (two one-sided tests).

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
    CLAIM = "Before a linear layer or a valid convolution gamma and beta add no function that it cannot make itself."
    ON_A_CASE = IDENTITY
    ENDPOINT = "Difference after moving gamma and beta into the next linear layer or valid convolution"
    MARGIN = 0.005
    MARGIN_REASON = "one or two test images"
    ARMS = {
        "gamma and beta": Arm("gamma and beta", batch_norm()),
        "gamma": Arm("gamma", batch_norm(learn_shift=False)),
        "beta": Arm("beta", batch_norm(learn_gain=False)),
        "neither": Arm("neither", batch_norm(learn_gain=False, learn_shift=False)),
    }
    POINTS = {"place": "places"}
    CONDITIONS = {"place": ""}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "batch": 64,
            "lr": 0.1,
            "steps": 200,
            "train": None,
            "test": None,
        },
        full={"network": {"name": "vgg-a"}, "batch": 128, "steps": 15000},
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the algebra, and every arm in every place."""
        yield "algebra", {"place": "none"}
        yield from super().grid({"places": list(PLACES)})

    def norm(self, cell: Cell) -> Factory:
        """Return the arm's norm, after the activation where a linear layer is to follow."""
        factory = super().norm(cell)

        def behind(place: Place) -> nn.Module:
            return _ActivationFirst(factory(place))

        return behind if cell.point["place"] == "linear" else factory

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return the activation that follows the norm, or none."""
        return {"activation": cell.point["place"]}

    def trains(self, cell: Cell) -> bool:
        """All but the algebra, which is measured."""
        return cell.arm != "algebra"

    def run_cell(self, cell: Cell, data: Dataset, device: str) -> Iterable[Record]:
        """Measure the algebra, or train one arm."""
        return super().run_cell(cell, data, device) if self.trains(cell) else _algebra(cell)

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the function class; padding, rectifiers and dynamics are claims of their own."""
        shares = ", ".join(f"{typical(100 * _border(n)(evidence))} % of {n}x{n}" for n in SIZES)
        yield Contrast(
            Quantity("error", _largest_error),
            exact_within=1e-12,
            name="linear and valid",
            says="gamma moves into the next weights and beta into the next bias ({effect}); a zero-padded convolution "
            "cannot take beta at its border",
        )
        yield Contrast(
            mean("padded", "difference after moving gamma and beta into a zero-padded convolution", probe="algebra"),
            exact_within=1e-9,
            unit="%",
            name="padded",
            claim="Before a zero-padded convolution, too, gamma and beta add no function that it cannot make itself.",
            says=f"beta makes a border that a zero-padded 3x3 convolution cannot make ({{effect}}): outputs differ at "
            f"{shares} positions",
        )
        yield Contrast(
            mean(
                "rectified_gamma",
                "difference after moving gamma through the rectifier, beta divided by it",
                probe="algebra",
            ),
            exact_within=1e-12,
            name="rectifier",
            claim="Before a rectifier a positive gamma can be moved into the next layer.",
        )
        for place, words in PLACES.items():
            conditions = {"layer after the norm": f"{words.removeprefix('then ')} after the norm"}
            yield Contrast(
                accuracy(),
                "gamma and beta",
                "neither",
                at={"place": place},
                conditions=conditions,
                equal_within=self.MARGIN,
                name=f"accuracy, {place}",
                claim="Gamma and beta make no difference to test accuracy.",
                says="with gamma and beta the test accuracy is {effect}",
                comparative=("higher", "lower"),
            )
            yield Contrast(
                steps_to(0.9),
                "neither",
                "gamma and beta",
                at={"place": place},
                conditions=conditions,
                scale="log-ratio",
                equal_within=math.log(1.1),
                margin_reason="a tenth of the steps is less than what two seeds differ by",
                name=f"speed, {place}",
                claim="Gamma and beta make no difference to the speed of training.",
                says="training takes {effect} steps with gamma and beta",
                comparative=("fewer", "more"),
            )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the loss of the arms before a linear layer and before a rectifier."""
        return [
            self.curves(evidence, "loss", at={"place": "linear"}, slug="loss"),
            self.curves(evidence, "loss", at={"place": "relu"}),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the border against theory, and how the arms end."""
        return [
            theory_table(
                (f"share of positions at the border, {n}x{n}", _border(n)(evidence), 1 - ((n - 2) / n) ** 2)
                for n in SIZES
            ),
            self.grid_table(
                [steps_to(0.9), accuracy()],
                evidence,
                rows={"place": list(PLACES), "arm": list(self.ARMS)},
                title="How the arms end",
                heads={"place": "Norm", "arm": "Learnt"},
                labels=PLACES,
            ),
        ]


def _largest_error(evidence: Evidence) -> np.ndarray:
    linear, valid = (mean(name, probe="algebra")(evidence) for name in ("linear", "valid"))
    return np.maximum(linear, valid)


def _border(size: int) -> Quantity:
    """Return the share of positions that a zero-padded convolution of an image gets wrong."""
    return mean(f"border_{size}", probe="algebra")


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
