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
from normscope.studies import AbstractTraining, Arm, Contrast, Evidence, Quantity, last, presets
from normscope.studies.lab import norms
from normscope.studies.lab.arms import recorder, split_of
from normscope.studies.lab.data import Dataset, Split
from normscope.studies.lab.streams import generator

UNITS = {
    "standardised": "standardised features",
    "raw": "features in different units",
    "normed": "features in different units that batch norm is put on",
}
CLAIMS = {
    "after": "Batch norm after the activation makes what layers are given better conditioned.",
    "layer": "Layer norm makes what layers are given better conditioned.",
}
WIDTHS = (64, 256)


def _condition(evidence: Evidence, **where: Any) -> np.ndarray:
    frame = evidence.select(probe="conditioning", name="condition_95", **where)
    first = frame["site"].unique().sort().to_list()[:1]  # the data themselves are alike in all arms
    return evidence.mean_log(frame.filter(~frame["site"].is_in(first)))


STEPS = Quantity(
    "steps to 90 % of the way to the best training accuracy of all",
    lambda evidence, **where: evidence.arrivals(evidence.target(0.9), **where),  # one target for all units
    record=("training", "accuracy"),
    censored=True,
)
CONDITION = Quantity("condition number of the layers' inputs at 95 % of the energy", _condition, logs=True)


class ConditioningOfInputs(AbstractTraining):
    r"""Normalizing what layers are given improves conditioning, and so speeds training.

    ## Claim
    Inputs in different units make training slow, so they are standardised, and hidden layers should be for the same
    reason (answer to "What is the effect of batch normalization on the gradient?"); batch norm works by conditioning
    (quote in "How does the batch normalization layer work?", after Desjardins et al. 2015; from memory, not checked).

    ## Method
    Dense networks of five hidden layers of 64 with no norm, batch norm before or after the rectifier, layer norm. The
    condition number of the second moment of what each hidden layer is given, at 95 % of the energy, over layers and
    training: none over batch norm before the activation (headline), after it, and layer norm are three claims, each
    holding above 2. Claims of their own: features multiplied by 10^U(-2, 2), as units that differ, make training slow
    (steps to 90 % of the way to the best training accuracy of any arm, over those on standardised features); batch norm
    put on such features repairs it; the better conditioned of the two places is also the faster; and the outlier of
    uncentred rectified inputs is $1 + N/(\pi-1)$.

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
    CLAIM = "Batch norm before the activation makes what layers are given better conditioned."
    ON_A_CASE = "no question reads the spectrum of inputs: the probe `conditioning` does"
    ENDPOINT = (
        "Condition number of the layers' inputs at 95 % of the energy, no norm over batch norm before activations"
    )
    MARGIN = math.log(2)
    MARGIN_REASON = "twofold is little for numbers that range over powers of ten"
    VARIES = {"features": "units of the features"}
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
        """Yield the condition before activations; after them, layer norm, units, speed and theory are claims too."""
        at = {"features": "standardised"}
        for arm, name, claim in (
            ("before", "before the activation", ""),
            ("after", "after the activation", CLAIMS["after"]),
            ("layer", "layer norm", CLAIMS["layer"]),
        ):
            yield Contrast(
                CONDITION,
                "none",
                arm,
                at=at,
                scale="log-ratio",
                claim=claim,
                name=name,
                says=f"with {self.ARMS[arm]} the condition number of what layers are given is {{effect}}",
                comparative=("smaller", "larger"),
            )
        yield from self._units()
        yield Contrast(
            STEPS,
            "before",
            "after",
            at=at,
            scale="log-ratio",
            margin=math.log(1.1),
            margin_reason="a tenth of the steps",
            claim="The better conditioned place for batch norm trains faster: conditioning explains speed.",
            name="speed after against before",
            says="training takes {effect} steps with batch norm after the activation than with batch norm before it",
            comparative=("fewer", "more"),
            premises=(
                Contrast(
                    CONDITION,
                    "before",
                    "after",
                    at=at,
                    scale="log-ratio",
                    claim="Inputs are better conditioned with batch norm after the activation than before it.",
                    says="the condition number is {effect} with batch norm after the activation",
                    comparative=("smaller", "larger"),
                ),
            ),
        )
        for width in WIDTHS:
            yield Contrast(
                last(f"outlier_{width}", f"largest eigenvalue over the others, {width} inputs", probe="outlier"),
                "outlier",
                1 + width / (math.pi - 1),
                labels=("measured", "expected"),
                conditions={"width": f"{width} inputs"},
                scale="log-ratio",
                equal_within=math.log(1.05),
                margin_reason="what sampling makes of the covariance",
                claim="The largest eigenvalue of rectified normal inputs over the others is 1 + N/(pi - 1).",
                name=f"outlier, {width}",
                says="the largest eigenvalue over the others is {effect} than theory has it",
                comparative=("larger", "smaller"),
            )

    def _units(self) -> Iterator[Contrast]:
        """Yield what features in different units cost, and what batch norm on them brings back."""
        raw, normed, standard = ({"features": features} for features in ("raw", "normed", "standardised"))
        common: dict[str, Any] = {"quantity": STEPS, "at": {"arm": "none"}, "scale": "log-ratio"}
        yield Contrast(
            first=raw,
            second=standard,
            labels=(UNITS["raw"], UNITS["standardised"]),
            claim="Features in different units make training slow.",
            name="raw units",
            says="training takes {effect} steps on features in different units than on standardised features",
            comparative=("more", "fewer"),
            **common,
        )
        yield Contrast(
            first=raw,
            second=normed,
            labels=(UNITS["raw"], UNITS["normed"]),
            claim="Batch norm on features in different units makes training fast again.",
            name="batch norm on raw units",
            says="on features in different units training takes {effect} steps with batch norm on them",
            comparative=("fewer", "more"),
            **common,
        )
        yield Contrast(
            first=standard,
            second=normed,
            labels=(UNITS["standardised"], UNITS["normed"]),
            no_worse_than=self.MARGIN,
            claim="With batch norm on features in different units training is as fast as on standardised features.",
            name="batch norm against standardising",
            says="training takes {effect} steps with batch norm on the features than on standardised features",
            comparative=("fewer", "more"),
            **common,
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
