"""Is the plateau of the effective smoothness a property of the network, or of the learning rate?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor, nn

from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Record
from normscope.studies import AbstractStudy, Arm, Contrast, Evidence, Quantity, Reading, last, presets, typical
from normscope.studies.lab import norms
from normscope.studies.lab.arms import network, split_of
from normscope.studies.lab.by_hand import Objective
from normscope.studies.lab.data import Dataset, gaussian_regression
from normscope.studies.lab.full_batch import descend
from normscope.studies.lab.models import deep_linear
from normscope.studies.lab.plateaus import plateau, relative, share_at_edge, slope
from normscope.studies.lab.train import half_squares

#: The arms that are judged.
JUDGED = {"none": "no norm", "batch": "batch norm"}
CURVATURES = {
    "sharpness": "curvature along the gradient",
    "beta_relative": "effective beta, steps in units of the learning rate",
    "beta_absolute": "effective beta, steps fixed",
}


class BetaSmoothnessIsEdgeOfStability(AbstractStudy):
    r"""The effective smoothness settles at two over the learning rate, with batch norm or without.

    ## Claim
    The plateau of the effective beta-smoothness that is shown as the mark of batch norm (Santurkar et al. 2018, Figures
    4c and 10c: 20 at a learning rate of 0.1, 2·10⁶ at 10⁻⁶) is $2/\eta$, the edge of stability of gradient
    descent (Cohen et al. 2021): batch norm changes which learning rates can be used, not the curvature reached at one.

    ## Method
    Gradient descent on 500 training images, three tanh layers of 64, half the squared error to the one-hot labels. The
    curvature along the gradient, $g^T H g / g^T g$, is what the effective beta is for small steps; its plateau is
    the geometric mean over the last quarter of the run, at learning rates of .15, .2 and .25. Judged: the plateau is
    $2/\eta$ within 20 %, for the network with batch norm (headline) and without. A run that diverged, or whose
    curvature still rises toward the edge in that quarter, has no plateau yet and gives no number. Claims of their own:
    the two arms' plateaus differ by less than 1.2 times; the slope of the log plateau on log $\eta$ is -1 within
    .1, for the curvature and for the effective beta with steps in units of the learning rate and with fixed steps; and
    with batch norm more of the readings lie within a tenth of the edge. The preset *deep-linear* runs the exact deep
    linear network of the source (25 matrices of 10x10, 1000 Gaussian samples, half the sum of squares, learning rate
    10⁻⁶, 10 000 steps).

    ## Prediction
    Holds for both; the networks with batch norm reach the edge earlier, and on the deep linear network those without
    often sit on a flat plateau of the loss, far below the edge.

    ## Threats
    The runs were lengthened from 2000 to 3000 steps after a first look, in which not all had reached the edge.
    Full batches: with small batches it is the curvature of the batch's own loss that settles, at or below the same
    value (Andreyev & Beneventano 2024). In the source the smallest step is half a learning rate, and one over it is
    2/eta too, so fixed steps are read as well. Cross-entropy has curvature fall as the loss goes to zero. What other
    authors found is from their abstracts.
    """

    CODE = "beta-smoothness-is-edge-of-stability"
    CARD = 14
    TOPIC = "landscape"
    SOURCES = (
        "Santurkar et al. 2018 (arXiv:1805.11604), Figures 4c, 10c, 12d and 13d",
        "Cohen et al. 2021 (arXiv:2103.00065)",
        "Andreyev & Beneventano 2024 (arXiv:2412.20553)",
    )
    CLAIM = "The plateau of the effective smoothness is two over the learning rate, with batch norm or without."
    ON_A_CASE = "no question reads that plateau: the probe `landscape` does"
    ENDPOINT = "Plateau of the curvature along the gradient over two divided by the learning rate, batch norm, less one"
    MARGIN = 0.2
    MARGIN_REASON = "the figures of the source are about plateaus several times apart"
    VARIES = {"arms": "norm"}
    # The deep linear network has further arms: whether its last matrix is normalized is not stated in the source.
    ARMS = {
        "none": Arm(JUDGED["none"], norms.none()),
        "batch": Arm(JUDGED["batch"], norms.batch()),
        "batch-last": Arm("batch norm, last matrix too", norms.batch()),
        "l1": Arm("l1", norms.lp(1.0)),
        "l2": Arm("l2", norms.lp(2.0)),
        "linf": Arm("l-infinity", norms.lp(math.inf)),
    }
    PRESETS = {
        **presets(
            quick={
                "protocol": "network",
                "network": {"name": "mlp", "depth": 3, "width": 64, "activation": "tanh", "gain": 1.0},
                "examples": 500,
                "lrs": [0.15, 0.2, 0.25],
                "steps": 3000,
                "every": 50,
                "relative": [0.5, 1.0, 2.0, 4.0],
                "absolute": [0.1, 0.2, 0.4, 0.8],
                "plateau": 0.75,
                "train": None,
                "test": None,
            },
            full={
                "network": {"name": "vgg-a", "width": 16},
                "examples": 5000,
                "lrs": [0.02, 0.05, 0.1, 0.2],
                "steps": 5000,
                "every": 25,
                "absolute": [0.05, 0.1, 0.2, 0.4],
            },
        ),
        "deep-linear": {
            "protocol": "deep-linear",
            "depth": 25,
            "size": 10,
            "samples": 1000,
            "lrs": [1e-6],
            "steps": 10000,
            "every": 50,
            "relative": [0.01, 1.0, 30.0],
            "absolute": [],
            "plateau": 0.75,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every arm of the protocol at every learning rate."""
        for rate in settings["lrs"]:
            for arm in self._arms(settings):
                yield arm, {"lr": rate}

    def _arms(self, settings: Mapping[str, Any]) -> list[str]:
        return list(self.ARMS if settings["protocol"] == "deep-linear" else JUDGED)

    def run_cell(self, cell: Cell, data: Dataset, device: str) -> Iterable[Record]:
        """Descend with one arm, and read the curvature on the way."""
        settings, norm = cell.settings, self.ARMS[cell.arm].norm
        options = {name: settings[name] for name in ("steps", "every", "relative", "absolute")}
        if settings["protocol"] == "deep-linear":  # as in Santurkar et al. 2018, A.1
            depth, size = int(settings["depth"]), int(settings["size"])
            split = gaussian_regression(cell.seed, samples=int(settings["samples"]), size=size).to(device)
            linear = deep_linear(norm=norm, seed=cell.seed, depth=depth, size=size, last=cell.arm == "batch-last")
            model: nn.Module = linear.to(device).train()
            objective: Objective = half_squares
            x, targets = split.x_train, split.y_train
        else:
            split, count = split_of(cell, data, device), int(settings["examples"])
            x = split.x_train[:count]
            targets = nn.functional.one_hot(split.y_train[:count], data.classes).to(x.dtype)
            model, objective = network(cell, data, norm, device), _half_square
        return descend(model, x, targets, objective, cell=cell, lr=float(cell.point["lr"]), **options)

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the plateau with batch norm and without; their ratio, slopes and the share of time at the edge too."""
        height = Quantity("plateau times half the learning rate, mean over learning rates", relative)
        for arm in ("batch", "none"):
            yield Contrast(
                height,
                arm,
                1.0,
                equal_within=self.MARGIN,
                unit="%",
                labels=(JUDGED[arm], "two over the learning rate"),
                name=JUDGED[arm],
                says="the plateau of the curvature lies {effect} two over the learning rate",
                comparative=("above", "below"),
                reason=_by_rate,
            )
        yield Contrast(
            height,
            "batch",
            "none",
            scale="log-ratio",
            equal_within=math.log(1.2),
            claim="At the same learning rate the plateau is as high with batch norm as without.",
            name="batch norm against none",
            says="with batch norm the plateau is {effect}",
            comparative=("higher", "lower"),
        )
        rates = evidence.settings["lrs"]
        for name, said in CURVATURES.items() if len(rates) > 1 else ():
            for arm in JUDGED:
                yield Contrast(
                    Quantity("slope of the log plateau on the log learning rate", partial(slope, name=name)),
                    arm,
                    -1.0,
                    equal_within=0.1,
                    margin_reason="a tenth of the exponent; over a grid of less than twofold it moves plateaus by 5 %",
                    conditions={"measure": said},
                    claim="The plateau is in inverse proportion to the learning rate.",
                    name=f"slope, {name}, {arm}",
                    endpoint=f"Slope of the log plateau on the log learning rate, plus one: {said}, {JUDGED[arm]}",
                    labels=(JUDGED[arm], "minus one"),
                    says="the exponent of the learning rate differs from minus one by {effect}",
                )
        yield Contrast(
            Quantity("share of readings within a tenth of the edge", share_at_edge, unit="points"),
            "batch",
            "none",
            margin=0.05,
            margin_reason="a twentieth of the run",
            claim="With batch norm more of the training is spent at the edge of stability.",
            name="time at the edge",
            says="the share of the run at the edge is {effect} with batch norm",
            comparative=("higher", "lower"),
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the curvature on its way to the edge, and the loss."""
        rate = evidence.settings["lrs"][0]
        words = {arm: self.wording.arms[arm] for arm in self._arms(evidence.settings)}
        loss = last("loss", probe="descent")
        ends, losses = (
            "; ".join(f"{said} {quantity.text(evidence, arm=arm, lr=rate)}" for arm, said in words.items())
            for quantity in (Quantity("", relative), loss)
        )
        edge = evidence.select(probe="descent", name="sharpness", lr=rate)
        return [
            curves(
                edge.with_columns(value=pl.col("value") * rate / 2),
                y="sharpness",
                slug="edge",
                title=f"Curvature along the gradient, in units of two over the learning rate ({rate:g})",
                y_title="Curvature times half the learning rate",
                labels=words,
                caption=f"Over the last quarter: {ends}. One is the edge of stability.",
            ),
            self.curves(
                evidence,
                "loss",
                probe="descent",
                at={"lr": rate},
                slug="loss",
                title=f"Loss, learning rate {rate:g}",
                y_title="Loss",
                arms=list(words),
                caption=f"At the end: {losses}.",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate plateaus against theory."""
        return [
            self.grid_table(
                [
                    Quantity("plateau", plateau),
                    Quantity("theory", lambda evidence, arm, lr: np.full(len(evidence.seeds), 2 / lr)),
                    Quantity("ratio", relative),
                    Quantity("share at the edge", share_at_edge),
                    last("loss", probe="descent"),
                    last("diverged", "share of runs that diverged", probe="descent"),
                ],
                evidence,
                rows={"lr": evidence.settings["lrs"], "arm": self._arms(evidence.settings)},
                title="Plateau of the curvature along the gradient",
            )
        ]


def _half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(1).mean()


def _by_rate(reading: Reading) -> str:
    """Say the plateaus of an arm by learning rate."""
    evidence, arm = reading.evidence, str(reading.first.where["arm"])
    rates = evidence.settings["lrs"]
    plateaus = ", ".join(f"{typical(relative(evidence, arm, rate)) or 'none yet'} at {rate:g}" for rate in rates)
    return f"Plateau times half the learning rate, {JUDGED[arm]}: {plateaus}."
