"""What follows from a norm that does not see the scale of the weights before it."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.studies import AbstractStudy, Contrast, Evidence, Quantity, accuracy, mean, presets
from normscope.studies.case_question import IDENTITY
from normscope.studies.figures import by_rate_figure, theory_table
from normscope.studies.lab.arms import batch_norm, fit, network, split_of
from normscope.studies.lab.data import Dataset
from normscope.studies.lab.scale_free import equilibrium, identities

DECAYS = {"decay": "labels right", "decay, wrong labels": "half of the labels wrong"}
RATES = {"invariant": "faster weights before norms", "variant": "faster head, gamma and beta"}
#: Laws of the weights before norms, by the name of the record: in words, what theory says, and the claim.
IDENTITIES = {
    "gradient_slope": (
        "Slope of log gradient on log scale of the weights",
        -1.0,
        "The gradient of weights before batch norm falls as one over their scale.",
    ),
    "curvature_slope": (
        "Slope of log curvature on log scale of the weights",
        -2.0,
        "The curvature along weights before batch norm falls as one over the square of their scale.",
    ),
    "pythagoras": (
        "Growth of squared weights over the sum of squared steps",
        1.0,
        "The squared norm of weights before batch norm grows by the squared steps of gradient descent.",
    ),
}
EQUILIBRIUM = {
    "rotation": (
        "rotation per step over sqrt(2 eta lambda)",
        "With weight decay the weights turn by sqrt(2 eta lambda) a step.",
        "the weights turn {effect} the angle of theory a step",
    ),
    "equilibrium": (
        "norm of the weights over (eta G / 2 lambda)^(1/4)",
        "With weight decay the norm of the weights settles at (eta G / 2 lambda)^(1/4).",
        "the norm of the weights is {effect} that of theory",
    ),
}
#: How far an identity in float64 may be off: rounding over some hundred steps.
ROUNDING = 1e-9


class ScaleInvarianceAutoRate(AbstractStudy):
    r"""Batch norm makes backpropagation blind to the scale of the weights, and their growth sets the step.

    ## Claim
    Backpropagation through batch norm is not affected by the scale of the weights before it; larger weights get smaller
    gradients, and the growth of their norm tunes the step (Ioffe & Szegedy 2015, section 3.3; Arora, Li and Lyu 2018,
    lemma 2.4, quoted second hand).

    ## Method
    A network of three hidden layers of 100 in float64 with eps 1e-30. The headline is an identity: the largest cosine
    between a unit's weights and their gradient, at initialization and after training, is exact if it is below 1e-12 in
    every seed. What follows from it are identities of their own: the slopes of log gradient norm and of log curvature
    along a fixed direction on log scale of the weights, -1 and -2; the squared norm of the weights after T steps of
    SGD, less that at the start, over the sum of the squared steps, 1. The equilibrium is theory, not algebra, and a
    claim of its own: with weight decay the rotation per step against $\sqrt{2\eta\lambda}$ and the norm against
    $(\eta \hat G/2\lambda)^{1/4}$, alike within 10 %, after several relaxation times, once as it is and once with
    half of the labels wrong, so that gradients do not die away. Last, training with a learning rate 30 times as large
    on the weights before norms alone, or on everything else alone: which of the two breaks.

    ## Prediction
    Exact. The equilibrium holds within 10 % for small eta lambda where gradients keep their size. Large steps on
    scale-invariant weights are survived, on the head, gamma and beta they are not.

    ## Threats
    The arm with wrong labels was added after a pilot in which the equilibrium failed with right ones (rotation .55 and
    norm 1.5 times theory: gradients of learnt examples die away, and the norm lags). Torch's eps of 1e-5 breaks the
    identity at the order of eps over the variance (3e-6 to 9e-6 here). Whether the effect explains the benefit of batch
    norm is another question. Momentum changes the prefactor of the equilibrium (from memory, not checked against a
    text).
    """

    CODE = "scale-invariance-auto-rate"
    CARD = 5
    TOPIC = "scale"
    SOURCES = (
        "Article on batch norm, list of benefits",
        "Ioffe & Szegedy 2015 (arXiv:1502.03167), section 3.3",
        "Arora, Li and Lyu 2018 (arXiv:1812.03981), definition 2.1, lemma 2.4, quoted second hand",
        "van Laarhoven 2017 (arXiv:1706.05350), second hand",
    )
    CLAIM = "The gradient of weights before batch norm is orthogonal to them: their scale changes nothing but the step."
    ON_A_CASE = IDENTITY
    ENDPOINT = "Cosine of a unit's weights and their gradient, largest of units and times"
    MARGIN = math.log(1.1)
    MARGIN_REASON = "theory leaves out what is of higher order in the step, some percent"
    VERSION = 2
    ARMS = {"identities": "batch norm in float64", **DECAYS, **RATES}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "batch": 64,
            "lr": 0.1,
            "steps": 200,
            "decay": 0.01,
            "decayed_steps": 1500,
            "decayed_network": {"name": "mlp", "depth": 2, "width": 32},
            "decayed_noise": 0.5,
            "factor": 30.0,
            "train": None,
            "test": None,
        },
        full={
            "network": {"name": "vgg-a"},
            "batch": 128,
            "steps": 2000,
            "decay": 0.0005,
            "decayed_steps": 30000,
            "decayed_network": {"name": "vgg-a"},
        },
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the identities, the equilibrium, and the two sets of faster parameters."""
        yield "identities", {"lr": settings["lr"]}
        for arm in DECAYS:
            yield arm, {"lr": settings["lr"]}
        for lr in (settings["lr"], settings["factor"] * settings["lr"]):
            for arm in RATES:
                yield arm, {"lr": lr}

    def run_cell(self, cell: Cell, data: Dataset, device: str) -> Iterable[Record]:
        """Measure one of the things."""
        split = split_of(cell, data, device)
        if cell.arm == "identities":
            yield from identities(cell, data, split, device)
        elif cell.arm in DECAYS:
            yield from equilibrium(cell, data, split, device)
        else:
            model = network(cell, data, batch_norm(), device)
            before = [p for n, p in model.named_parameters() if "linear.weight" in n]
            rest = [p for n, p in model.named_parameters() if "linear.weight" not in n]
            fast, slow = (before, rest) if cell.arm == "invariant" else (rest, before)
            groups = [{"params": fast}, {"params": slow, "lr": cell.settings["lr"]}]
            rate = float(cell.point["lr"])
            yield from fit(model, split, cell, optimizer=lambda _: torch.optim.SGD(groups, lr=rate))

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the identity; the laws that follow from it, and the equilibrium, are claims of their own."""
        yield Contrast(
            mean("cosine", "cosine of a unit's weights and their gradient", probe="scale"),
            "identities",
            exact_within=1e-12,
            name="orthogonal",
            says="the gradient is orthogonal to the weights ({effect} of the cosine)",
        )
        for name, (law, expected, claim) in IDENTITIES.items():
            yield Contrast(
                mean(name, f"relative error of: {law[0].lower()}{law[1:]}", probe="scale"),
                "identities",
                expected,
                effect=lambda measured, theory: measured / theory - 1,
                exact_within=ROUNDING,
                name=name.replace("_", " "),
                claim=claim,
                endpoint=f"{law}, over {expected:g}, less 1",
                says=f"{law[0].lower()}{law[1:]} is {expected:g} ({{effect}})",
            )
        for arm, words in DECAYS.items():
            for name, (law, claim, says) in EQUILIBRIUM.items():
                yield Contrast(
                    mean(name, law, probe="scale"),
                    arm,
                    1.0,
                    conditions={"labels": words},
                    scale="log-ratio",
                    equal_within=self.MARGIN,
                    name=f"{name}, {words}",
                    claim=claim,
                    endpoint=f"{law[0].upper()}{law[1:]}, {words}",
                    says=says,
                    labels=("", "theory"),
                )
        yield Contrast(
            Quantity("training accuracy of the last 20 steps, 0 where it diverged", _training_accuracy, unit="points"),
            "invariant",
            "variant",
            at={"lr": evidence.settings["factor"] * evidence.settings["lr"]},
            margin=0.1,
            margin_reason="training breaks when it loses a tenth of the examples, not a few",
            name="large steps",
            claim="Large steps break the parameters that scale matters to, not the weights before norms.",
            says="with large steps on the weights before norms training accuracy ends {effect} than with large steps "
            "on everything else",
            comparative=("higher", "lower"),
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the gradient by scale, and what faster parameters do."""
        slope = mean("gradient_slope", probe="scale").text(evidence, arm="identities")
        return [
            self.curves(
                evidence,
                "gradient_at",
                probe="scale",
                slug="gradient-by-scale",
                title="Gradient norm by scale of the weights before norms",
                x_title="Scale of the weights, in percent of their initial one",
                y_title="Norm of the gradient",
                log=True,
                log_x=True,
                caption=f"The slope is {slope}; theory says -1.",
            ),
            by_rate_figure(evidence, RATES),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the laws against theory, and how training with faster parameters ends."""
        eta, decay = evidence.settings["lr"], evidence.settings["decay"]
        laws = [
            *((law, name, expected, "identities") for name, (law, expected, _) in IDENTITIES.items()),
            *((f"Rotation per step, {words}", "rotation_angle", math.sqrt(2 * eta * decay), arm)
              for arm, words in DECAYS.items()),
            *((f"Weight norm at equilibrium over theory, {words}", "equilibrium", 1.0, arm)
              for arm, words in DECAYS.items()),
        ]  # fmt: skip
        return [
            theory_table((law, mean(name, probe="scale")(evidence, arm=arm), value) for law, name, value, arm in laws),
            self.grid_table(
                accuracy(),
                evidence,
                rows={"arm": list(RATES), "lr": [eta, evidence.settings["factor"] * eta]},
                title="Faster parameters",
                heads={"arm": "Which", "lr": "Their learning rate"},
            ),
        ]


def _training_accuracy(evidence: Evidence, **where: Any) -> np.ndarray:
    return np.nan_to_num(evidence.final("accuracy", **where))
