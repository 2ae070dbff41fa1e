"""Are the inputs of layers better conditioned behind batch norm, and is that why training is fast?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from normscope import layers
from normscope.plots import Figure, Table, by_depth, curves
from normscope.probes import Conditioning
from normscope.records import Cell, Record, Verdict
from normscope.studies.claims.norm_before_or_after_activation import _After
from normscope.studies.evidence import Evidence, typical
from normscope.studies.figures import reached
from normscope.studies.judging import equivalent, with_parts
from normscope.studies.lab import norms
from normscope.studies.lab.arms import fit, network, recorder, split_of
from normscope.studies.lab.models import Place
from normscope.studies.lab.streams import generator
from normscope.studies.study import AbstractStudy

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

ARMS = {
    "none": "no norm",
    "before": "batch norm before the activation",
    "after": "batch norm after the activation",
    "layer": "layer norm",
}
UNITS = {"standardised": "features standardised", "raw": "features in different units", "normed": "batch norm on them"}
SLOWER = {"raw": "features in different units", "normed": "features in different units that batch norm is put on"}
WIDTHS = (64, 256)


class ConditioningOfInputs(AbstractStudy):
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
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 5, "width": 64},
            "batch": 256,
            "lr": 0.1,
            "steps": 201,
            "every": 50,
            "samples": 20000,
            "train": None,
            "test": None,
        },
        "full": {
            "network": {"name": "vgg-a"},
            "batch": 256,
            "lr": 0.1,
            "steps": 15001,
            "every": 1000,
            "samples": 200000,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the arms on standardised features, features in other units, and the outlier."""
        for arm in ARMS:
            yield arm, {"features": "standardised"}
        for features in ("raw", "normed"):
            yield "none", {"features": features}
        yield "outlier", {"features": "none"}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Train one arm with its inputs watched, or measure the outlier."""
        if cell.arm == "outlier":
            yield from _outlier(cell)
            return
        split = split_of(cell, data, device)
        features = str(cell.point["features"])

        def after(place: Place) -> nn.Module:
            return _After(norms.batch()(place))

        def layer(place: Place) -> nn.Module:
            return layers.GroupNorm(1, place.features)

        factory = {"none": norms.none(), "before": norms.batch(), "after": after, "layer": layer}[cell.arm]
        model: nn.Module = network(
            cell, data, factory, device, **({"activation": "linear"} if cell.arm == "after" else {})
        )
        if features != "standardised":
            split = _other_units(split, cell)
        if features == "normed":
            first = [nn.Flatten(), layers.BatchNorm1d(math.prod(data.shape)), nn.Unflatten(1, data.shape)]
            model = nn.Sequential(*first, model).to(device).train()
        probes = [Conditioning()] if features == "standardised" else []
        yield from fit(model, split, cell, probes=probes, every=int(cell.settings["every"]))

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the condition before activations; the other arms, mediation, units and theory are parts."""
        primary = self._better(evidence, "before", self.ENDPOINT)
        parts = [
            self._better(evidence, arm, f"Condition number, no norm over {ARMS[arm]}") for arm in ("after", "layer")
        ]
        fast = {arm: reached(evidence, arm, 0.9, features="standardised")[0] for arm in ARMS}
        kappa = {arm: _kappa(evidence, arm) for arm in ARMS}
        parts.append(
            self.part(
                evidence,
                np.log(fast["before"]) - np.log(fast["after"]),
                scale="log-ratio",
                margin=math.log(1.1),
                claim="The better conditioned place for batch norm trains faster: conditioning explains speed.",
                endpoint="Steps to 90 %, batch norm before over after the activation",
                reason=f"Conditions {typical(kappa['before'], logs=True)} before and "
                f"{typical(kappa['after'], logs=True)} after; steps {typical(fast['before'])} and "
                f"{typical(fast['after'])}.",
            )
        )
        base = np.log(fast["none"])
        for features in ("raw", "normed"):
            slow = np.log(reached(evidence, "none", 0.9, features=features)[0])
            parts.append(
                self.part(
                    evidence,
                    slow - base,
                    scale="log-ratio",
                    claim=f"Training is slower on {SLOWER[features]} than on standardised ones.",
                    endpoint=f"Steps to 90 %, {UNITS[features]} over standardised",
                    reason=f"{typical(slow, logs=True)} steps against {typical(base, logs=True)}.",
                )
            )
        parts += [self._theory(evidence, width) for width in WIDTHS]
        return with_parts(primary, parts, parts[2].reason)

    def _better(self, evidence: Evidence, arm: str, endpoint: str) -> Verdict:
        plain, normed = _kappa(evidence, "none"), _kappa(evidence, arm)
        return self.part(
            evidence,
            plain - normed,
            scale="log-ratio",
            claim="" if arm == "before" else f"With {ARMS[arm]} inputs are better conditioned.",
            endpoint=endpoint,
            reason=f"{typical(plain, logs=True)} with no norm, {typical(normed, logs=True)} with {ARMS[arm]}.",
        )

    def _theory(self, evidence: Evidence, width: int) -> Verdict:
        found = evidence.last(f"outlier_{width}", probe="outlier")
        expected = 1 + width / (math.pi - 1)
        return equivalent(
            self,
            evidence,
            np.log(found) - math.log(expected),
            math.log(1.05),
            scale="log-ratio",
            claim="The largest eigenvalue of rectified normal inputs over the others is 1 + N/(pi - 1).",
            endpoint=f"Measured over theoretical outlier, {width} inputs",
            reason=f"{typical(found)} measured, {expected:.1f} in theory.",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the condition by layer, and the loss."""
        return [
            by_depth(
                evidence.select(probe="conditioning", name="condition_95", features="standardised"),
                y="condition_95",
                slug="by-layer",
                title="Condition number of what each layer is given, at 95 % of the energy",
                y_title="Largest over smallest eigenvalue",
                labels=ARMS,
                caption="; ".join(
                    f"{words}: {typical(_kappa(evidence, arm), logs=True)}" for arm, words in ARMS.items()
                )
                + " (hidden layers, geometric means).",
            ),
            curves(
                evidence.select(probe="training", features="standardised"),
                y="loss",
                slug="loss",
                title="Training loss",
                y_title="Cross-entropy of the step's batch",
                log=True,
                labels=ARMS,
                caption=evidence.final_losses(ARMS, features="standardised"),
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the outlier against theory, and the steps by units."""
        rows = []
        for width in WIDTHS:
            found = float(np.nanmean(evidence.last(f"outlier_{width}", probe="outlier")))
            expected = 1 + width / (math.pi - 1)
            rows.append((f"outlier, {width} inputs", f"{found:.2f}", f"{expected:.2f}", f"{found / expected:.3f}"))
        units = tuple(
            (words, typical(reached(evidence, "none", 0.9, features=features)[0])) for features, words in UNITS.items()
        )
        return [
            Table("Against theory", ("Quantity", "Measured", "Theory", "Ratio"), tuple(rows)),
            Table("Units of the features", ("Features", "Steps to 90 %"), units),
        ]


def _kappa(evidence: Evidence, arm: str) -> np.ndarray:
    frame = evidence.select(probe="conditioning", name="condition_95", arm=arm, features="standardised")
    first = frame["site"].unique().sort().to_list()[:1]  # the data themselves are alike in all arms
    return evidence.mean_log(frame.filter(~frame["site"].is_in(first)))


def _other_units(split: Any, cell: Cell) -> Any:
    """Multiply every feature by a random power of ten."""
    stream = generator(cell.seed, "units")
    shape = split.x_train.shape[1:]
    factor = (10 ** (4 * torch.rand(shape, generator=stream) - 2)).to(split.x_train)
    return type(split)(
        split.x_train * factor, split.y_train, split.x_val * factor, split.y_val, split.x_test * factor, split.y_test
    )


def _outlier(cell: Cell) -> Iterable[Record]:
    record, stream = recorder(cell, "outlier"), generator(cell.seed, "outlier")
    for width in WIDTHS:
        h = torch.relu(torch.randn(int(cell.settings["samples"]), width, generator=stream, dtype=torch.float64))
        values = torch.linalg.eigvalsh(h.T @ h / len(h))
        yield record(f"outlier_{width}", values[-1] / values[:-1].mean())
