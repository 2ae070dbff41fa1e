"""Are the inputs of layers better conditioned behind batch norm, and is that why training is fast?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from normscope import layers
from normscope.plots import Figure, by_depth
from normscope.probes import Conditioning
from normscope.records import Cell, Record
from normscope.studies import AbstractTraining, Arm, Contrast, Evidence, Quantity, last, presets, steps_to
from normscope.studies.lab import norms
from normscope.studies.lab.arms import recorder, split_of
from normscope.studies.lab.data import Dataset, Split
from normscope.studies.lab.streams import generator

UNITS = {
    "standardised": "standardised features",
    "raw": "features in different units",
    "normed": "features in different units that batch norm is put on",
}
WIDTHS = (64, 256)


def _condition(evidence: Evidence, **where: Any) -> np.ndarray:
    frame = evidence.select(probe="conditioning", name="condition_95", **where)
    first = frame["site"].unique().sort().to_list()[:1]  # the data themselves are alike in all arms
    return evidence.mean_log(frame.filter(~frame["site"].is_in(first)))


CONDITION = Quantity("condition number of the layers' inputs at 95 % of the energy", _condition, logs=True)


class ConditioningOfInputs(AbstractTraining):
    r"""Normalizing what layers are given improves conditioning, and so speeds training.

    ## Claim
    Inputs in different units make training slow, so they are standardised, and hidden layers should be for the same
    reason (answer to "What is the effect of batch normalization on the gradient?"); batch norm works by conditioning
    (quote in "How does the batch normalization layer work?", after Desjardins et al. 2015; from memory, not checked).

    ## Method
    Dense networks of five hidden layers of 64 with no norm, batch norm before or after the rectifier, layer norm. The
    condition number of the second moment of what each hidden layer is given, at 95 % of the energy. Primary: none over
    batch norm before the activation, over layers and training; supported above 2. Parts: the same for after the
    activation and for layer norm; whether the better conditioned of the two places is also the faster; the outlier of
    uncentred rectified inputs against :math:`1 + N/(\pi-1)`; and features multiplied by 10^U(-2, 2): steps to 90 % on
    raw features over standardised ones, and with batch norm on the features.

    ## Prediction
    After the activation far better conditioned than before it, where the mean of the rectifier stays; yet both train
    equally fast, so that conditioning of inputs alone does not explain batch norm.

    ## Threats
    The second moment of inputs is one factor of the curvature; the other is that of the gradients. With 256
    samples in a batch small eigenvalues are underestimated in every arm.
    """

    CODE = "conditioning"
    CARD = 22
    TOPIC = "conditioning"
    SOURCES = (
        "Q&A on the gradient, answer on different units",
        "Q&A on the layer, quote on conditioning",
        "LeCun et al. 1998, Efficient BackProp, as cited by Ioffe & Szegedy 2015",
        "Desjardins et al. 2015, from memory",
    )
    CLAIM = "Batch norm makes what layers are given better conditioned."
    ENDPOINT = (
        "Condition number of the layers' inputs at 95 % of the energy, no norm over batch norm before activations"
    )
    MARGIN = math.log(2)
    ARMS = {
        "none": Arm("no norm", norms.none()),
        "before": Arm("batch norm before the activation", norms.batch()),
        "after": Arm("batch norm after the activation", norms.after_relu(norms.batch())),
        "layer": Arm("layer norm", lambda place: layers.GroupNorm(1, place.features)),
    }
    CONDITIONS = {"features": "{} features"}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 5, "width": 64},
            "batch": 256,
            "lr": 0.1,
            "steps": 201,
            "every": 50,
            "samples": 20000,
            "train": None,
            "test": None,
        },
        full={"network": {"name": "vgg-a"}, "steps": 15001, "every": 1000, "samples": 200000},
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the arms on standardised features, features in other units, and the outlier."""
        for arm in self.ARMS:
            yield arm, {"features": "standardised"}
        for features in ("raw", "normed"):
            yield "none", {"features": features}
        yield "outlier", {"features": "none"}

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return no activation of the block's own where the norm brings it."""
        return {"activation": "linear"} if cell.arm == "after" else {}

    def network(self, cell: Cell, data: Dataset, device: str) -> nn.Module:
        """Return the network of an arm, behind a batch norm of the features at that point."""
        model = super().network(cell, data, device)
        if cell.point["features"] != "normed":
            return model
        first = [nn.Flatten(), layers.BatchNorm1d(math.prod(data.shape)), nn.Unflatten(1, data.shape)]
        return nn.Sequential(*first, model).to(device).train()

    def split(self, cell: Cell, data: Dataset, device: str) -> Split:
        """Return the data, every feature multiplied by a random power of ten where units are asked about."""
        split = split_of(cell, data, device)
        if cell.point["features"] == "standardised":
            return split
        exponent = 4 * torch.rand(split.x_train.shape[1:], generator=generator(cell.seed, "units")) - 2
        factor = (10**exponent).to(split.x_train)
        changed = {name: getattr(split, name) * factor for name in ("x_train", "x_val", "x_test")}
        return replace(split, **changed)

    def options(self, cell: Cell) -> dict[str, Any]:
        """Watch the inputs of the layers."""
        probes = [Conditioning()] if cell.point["features"] == "standardised" else []
        return {"probes": probes, "every": int(cell.settings["every"])}

    def run_cell(self, cell: Cell, data: Dataset, device: str) -> Iterable[Record]:
        """Train one arm, or measure the outlier."""
        return _outlier(cell) if cell.arm == "outlier" else super().run_cell(cell, data, device)

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the condition before activations; the other arms, mediation, units and theory are parts."""
        at, steps = {"features": "standardised"}, steps_to(0.9)
        for arm, claim in {
            "before": "",
            "after": "With batch norm after the activation inputs are better conditioned.",
            "layer": "With layer norm inputs are better conditioned.",
        }.items():
            yield Contrast(CONDITION, "none", arm, at=at, scale="log-ratio", claim=claim)
        yield Contrast(
            steps,
            "before",
            "after",
            at=at,
            scale="log-ratio",
            margin=math.log(1.1),
            claim="The better conditioned place for batch norm trains faster: conditioning explains speed.",
            in_headline=True,
        )
        for features in ("raw", "normed"):
            yield Contrast(
                steps,
                {"features": features},
                {"features": "standardised"},
                at={"arm": "none"},
                labels=(UNITS[features], UNITS["standardised"]),
                scale="log-ratio",
                claim=f"Training is slower on {UNITS[features]} than on standardised ones.",
            )
        for width in WIDTHS:
            yield Contrast(
                last(f"outlier_{width}", f"largest eigenvalue over the others, {width} inputs", probe="outlier"),
                "outlier",
                1 + width / (math.pi - 1),
                labels=("measured", "expected"),
                scale="log-ratio",
                equal_within=math.log(1.05),
                claim="The largest eigenvalue of rectified normal inputs over the others is 1 + N/(pi - 1).",
            )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the condition by layer, and the loss."""
        at: dict[str, Any] = {"features": "standardised"}
        ends = (f"{words}: {CONDITION.text(evidence, arm=arm, **at)}" for arm, words in self.wording.arms.items())
        return [
            by_depth(
                evidence.select(probe="conditioning", name="condition_95", **at),
                y="condition_95",
                slug="by-layer",
                title="Condition number of what each layer is given, at 95 % of the energy",
                y_title="Largest over smallest eigenvalue",
                labels=self.wording.arms,
                caption="; ".join(ends) + " (hidden layers, geometric means).",
            ),
            self.curves(evidence, "loss", at=at, slug="loss", title="Training loss"),
        ]


def _outlier(cell: Cell) -> Iterator[Record]:
    record, stream = recorder(cell, "outlier"), generator(cell.seed, "outlier")
    for width in WIDTHS:
        h = torch.relu(torch.randn(int(cell.settings["samples"]), width, generator=stream, dtype=torch.float64))
        values = torch.linalg.eigvalsh(h.T @ h / len(h))
        yield record(f"outlier_{width}", values[-1] / values[:-1].mean())
