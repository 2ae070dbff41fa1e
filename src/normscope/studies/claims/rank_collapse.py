"""Does the rank of hidden values collapse with depth, with and without batch norm?"""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from normscope.plots import Figure, Table, by_depth
from normscope.records import Cell, Record
from normscope.stats import slope_per_seed
from normscope.studies import AbstractStudy, Contrast, Evidence, Quantity, last, presets
from normscope.studies.evidence import Floats
from normscope.studies.lab.arms import recorder
from normscope.studies.lab.chain import ACTIVATIONS
from normscope.studies.lab.streams import generator

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

WORDS = {"linear": "linear networks", "relu": "rectifiers"}
STABLE = last("stable_rank", "stable rank of the hidden values of the last layer", probe="rank", logs=True)
PARTICIPATION = last(
    "participation", "participation ratio of the last layer's singular values", probe="rank", logs=True
)


class RankCollapse(AbstractStudy):
    r"""Batch norm keeps the rank of hidden values from collapsing with depth.

    ## Claim
    "The rank of the intermediate representations in unnormalized networks collapses quickly with depth"; batch norm
    "is an effective strategy to avoid rank collapse for both linear and ReLU networks" (Daneshmand et al. 2020,
    abstract). The bound is of order $\sqrt d$ for width d (their theorem, as a review of the paper cites it).

    ## Method
    Random chains of 50 layers on Gaussian inputs, as wide as the batch is large (16 to 256), with variance 1/width of
    the weights (2/width for rectifiers), with and without batch norm in front of the activation. What is read is the
    input of the last activation, H: samples by units, normalized where there is a norm. Its stable rank is $\lVert
    H\rVert_F^2 / \lVert H\rVert_2^2$, the participation ratio $(\sum s_i^2)^2/\sum s_i^4$ of its singular values; both
    lie between 1 and the width and do not depend on the scale of H. The headline is the stable rank with over without
    batch norm in the linear chain, of which the theorem is, at width 64; half again as large matters. Also tried: other
    widths, rectifiers. Claims of their own: without a norm the stable rank is 1 to a tenth, at widths 64 and 16; with
    batch norm its slope on the width, both logarithms, is that of $\sqrt d$, within .15, once for the participation
    ratio; the norm needs no subtraction of the mean for it.

    ## Prediction
    Linear chains: about 1.5 without and 4.6 with batch norm at width 64, the slope of $\sqrt d$. Chains of rectifiers
    collapse sooner without a norm, onto one direction that all samples share; batch norm takes that direction out.

    ## Threats
    One step of a random network. Products of matrices collapse by depth over width: at 50 layers a linear chain of 256
    units is on its way only. The theorem adds each layer to what it was given with a small factor, which the chains
    here do not; and it is a bound from below. Behind a rectifier the mean of the units is back, and the rank is lower
    there than in front of it (recorded as ``behind``).
    """

    CODE = "rank-collapse"
    CARD = 44
    TOPIC = "initialization"
    EXTENSION = True
    READS_DATA = False
    SOURCES = ("Daneshmand et al. 2020 (arXiv:2003.01652), abstract; the bound as a review at NeurIPS cites it",)
    CLAIM = "Batch norm keeps the rank of hidden values from collapsing with depth."
    ON_A_CASE = "no question reads ranks over depth"
    ENDPOINT = "Stable rank of the hidden values of layer 50 with over without batch norm, linear chain, width 64"
    MARGIN = math.log(1.5)
    MARGIN_REASON = "a rank that is half again as large is one more direction or so, of 64"
    ARMS = {"none": "no norm", "batch": "batch norm", "scale": "batch norm without subtraction of the mean"}
    POINTS = {"activation": "activations", "width": "widths"}
    CONDITIONS = {"activation": "", "width": "width {}"}
    PRESETS = presets(
        quick={
            "activations": ["linear", "relu"],
            "widths": [16, 32, 64, 128, 256],
            "judged": 64,
            "depth": 50,
        },
        full={"widths": [32, 64, 128, 256, 512], "depth": 200},
    )

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Run one random chain and record the ranks of every layer; arms share their weights."""
        record, width = recorder(cell, "rank"), int(cell.point["width"])
        activation = str(cell.point["activation"])
        values = (torch.empty(0), torch.empty(0))
        for index, values in enumerate(chain(cell.seed, width, int(cell.settings["depth"]), activation, cell.arm)):
            if width == cell.settings["judged"]:
                yield record("by_layer", ranks(values[0])[0], site=f"layer.{index}")
        pre, out = values
        stable, participation = ranks(pre)
        yield record("stable_rank", stable)
        yield record("participation", participation)
        yield record("behind", ranks(out)[0])

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the rank with over without batch norm; the collapse itself and the order of the rank are own claims."""
        settings = evidence.settings
        activations, judged = settings["activations"], settings["judged"]
        widths = [judged, *(width for width in settings["widths"] if width != judged)]
        for activation in activations:
            for width in widths:
                yield Contrast(
                    STABLE,
                    "batch",
                    "none",
                    at={"activation": activation, "width": width},
                    conditions={"activation": WORDS[activation]},
                    scale="log-ratio",
                    name=f"{activation}, width {width}",
                    says="the stable rank of the last layer is {effect} with batch norm",
                    comparative=("larger", "smaller"),
                )
        yield from self._laws(evidence)

    def _laws(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the collapse, the order of the rank, and what the mean is needed for: claims of their own."""
        activations, judged = evidence.settings["activations"], evidence.settings["judged"]
        widths = evidence.settings["widths"]
        for activation in activations:
            for width in (judged, min(widths)):
                yield Contrast(
                    STABLE,
                    "none",
                    1.0,
                    at={"activation": activation, "width": width},
                    conditions={"activation": WORDS[activation]},
                    scale="log-ratio",
                    equal_within=math.log(1.1),
                    margin_reason="a tenth of a direction is not a second one",
                    labels=("", "one direction"),
                    name=f"collapse, {activation}, width {width}",
                    claim="Without a norm the hidden values of 50 layers collapse to one direction.",
                    says="without a norm the stable rank of the last layer is {effect} that of one direction",
                )
        for slope, words in SLOPES:
            for activation in activations:
                yield Contrast(
                    slope,
                    "batch",
                    0.5,
                    at={"activation": activation},
                    conditions={"activation": WORDS[activation]},
                    equal_within=0.15,
                    margin_reason=".15 is a factor of one and a half over the sixteen-fold range of widths",
                    labels=("", "the square root"),
                    name=f"order of the {words}, {activation}",
                    claim=f"With batch norm the {words} grows as the square root of the width.",
                    says=f"the slope of the {words} on the width, both logarithms, differs by {{effect}} from the 0.5 "
                    "of a square root",
                )
        for activation in activations:
            yield Contrast(
                STABLE,
                "batch",
                "scale",
                at={"activation": activation, "width": judged},
                conditions={"activation": WORDS[activation]},
                scale="log-ratio",
                equal_within=math.log(1.2),
                margin_reason="a fifth is less than what a doubled width brings",
                name=f"mean, {activation}",
                claim="The division alone keeps the rank; the mean need not be subtracted.",
                says="the stable rank is {effect} with the mean subtracted than without",
                comparative=("larger", "smaller"),
            )

    def here(self, evidence: Evidence) -> str:
        """Say which chains the numbers are about; no data is used."""
        return f"random chains of {evidence.settings['depth']} dense layers, Gaussian inputs"

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the stable rank by layer at the judged width."""
        width = evidence.settings["judged"]
        return [
            by_depth(
                evidence.select(probe="rank", name="by_layer", activation=activation, width=width),
                y="by_layer",
                slug=f"by-depth-{activation}",
                title=f"Stable rank of the hidden values at each layer, {WORDS[activation]}, width {width}",
                y_title="Stable rank",
                arms=list(self.ARMS),
                labels=self.ARMS,
                caption=", ".join(
                    f"{STABLE.text(evidence, arm=arm, activation=activation, width=width)} at the end with {words}"
                    for arm, words in self.ARMS.items()
                )
                + ".",
            )
            for activation in evidence.settings["activations"]
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the ranks at every width."""
        behind = last("behind", "stable rank behind the last activation", probe="rank", logs=True)
        return [
            self.grid_table(
                [STABLE, PARTICIPATION, behind],
                evidence,
                rows={
                    "activation": evidence.settings["activations"],
                    "arm": list(self.ARMS),
                    "width": evidence.settings["widths"],
                },
                title="Ranks at the last layer",
                heads={"width": "Width and batch"},
                labels=WORDS,
                caption="Geometric means over seeds. All ranks lie between 1 and the width.",
            )
        ]


def chain(seed: int, width: int, depth: int, activation: str, arm: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield of every layer of a random chain the input and the output of its activation, each (width, width).

    Without a norm, values are brought to mean square 1 as a whole, which changes no rank and keeps them finite.

    Args:
        seed: Of weights and inputs.
        width: Units of every layer, and samples.
        depth: Number of layers.
        activation: One of ``lab.chain.ACTIVATIONS``.
        arm: ``"none"``, ``"batch"`` (eps 0) or ``"scale"``, which divides by the root mean square of each unit.
    """
    source = generator(seed, "chain")
    h = torch.randn(width, width, generator=source, dtype=torch.float64)
    for _ in range(depth):
        pre = h @ torch.randn(width, width, generator=source, dtype=torch.float64)
        if arm == "batch":
            pre = pre - pre.mean(0)
        axes = 0 if arm != "none" else (0, 1)
        pre = pre / pre.square().mean(axes, keepdim=True).sqrt()
        h = ACTIVATIONS[activation](pre)
        yield pre, h


def ranks(values: Tensor) -> tuple[float, float]:
    """Return stable rank and participation ratio of a matrix: both between 1 and its rank, and free of its scale."""
    squares = torch.linalg.svdvals(values).square()
    total = squares.sum()
    return float(total / squares.max()), float(total.square() / squares.square().sum())


def _slope(quantity: Quantity, evidence: Evidence, **where: Any) -> Floats:
    """Return per seed the slope of a log rank on the log width; NaN for a seed that lacks a width."""
    widths = evidence.settings["widths"]
    logs = np.array([quantity(evidence, width=width, **where) for width in widths]).T
    slopes, whole = np.full(len(logs), np.nan), np.isfinite(logs).all(1)
    if whole.any():
        slopes[whole] = slope_per_seed(np.log(widths), logs[whole])
    return slopes


SLOPES = (
    (Quantity("slope of the log stable rank on the log width", partial(_slope, STABLE)), "stable rank"),
    (
        Quantity("slope of the log participation ratio on the log width", partial(_slope, PARTICIPATION)),
        "participation ratio",
    ),
)
