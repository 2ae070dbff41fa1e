"""Internal covariate shift measured on gradients: does batch norm reduce it?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch import nn

from normscope.plots import Figure, Table, by_depth, curves, number
from normscope.probes.covariate_shift import CovariateShift
from normscope.records import Cell, Record
from normscope.stats import interpolate
from normscope.studies import (
    AbstractTraining,
    Arm,
    Best,
    Contrast,
    Evidence,
    Quantity,
    last,
    mean,
    mean_log,
    presets,
)
from normscope.studies.case_question import CaseQuestion
from normscope.studies.evidence import Floats
from normscope.studies.lab import norms
from normscope.studies.lab.arms import recorder
from normscope.studies.lab.data import gaussian_regression
from normscope.studies.lab.models import deep_linear
from normscope.studies.lab.train import half_squares

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset, Split

MAIN = ("none", "batch")
LINEAR = ("dln-none", "dln-batch")
LINEAR_SITES = {"blocks.8.linear": "layer 9", "blocks.16.linear": "layer 17"}
WINDOW = 0.3
KEEPS = "the cosine of a layer's gradient with itself after the update of earlier layers (1: no change)"


class IcsGradientShift(AbstractTraining):
    r"""Batch norm reduces the change of gradients.

    ## Claim
    Ioffe & Szegedy (2015) say that batch norm works by reducing internal covariate shift. Santurkar et al. (2018,
    definition 2.1) measure that shift as the change of a layer's gradient when the layers before it are updated
    ($G$ before, $G'$ after, same batch), and say that batch norm does not reduce it; often there is more
    (article on batch norm, experiment 2). In a deep linear network the network without is said to have almost none,
    while with batch norm $G$ and $G'$ are almost uncorrelated (section 2.2, figure 3). The claim here is
    that of the first source; the second one says that it is false.

    ## Method
    Networks with and without batch norm share initial weights and batches. In every layer but the first, which nothing
    precedes, the cosine of $G$ and $G'$ is read every few steps over the first 30 % of training and before
    99 % training accuracy. The effect is the cosine with minus the cosine without batch norm, averaged over layers and
    steps: a higher cosine is less shift. The headline is the second source's own
    comparison, at the same learning rate (0.1). Also tried: the same relative update
    $\|\Delta W\|/\|W\|$, by interpolation over a grid of learning rates, and each arm at its own best
    learning rate by validation loss. Claims of their own: the relative and the raw length of $G'-G$, and the deep
    linear network of the source (25 matrices of 10 x 10, Gaussian data, gradient descent on half the sum of squared
    errors), which only the full preset runs.

    ## Prediction
    At the same learning rate the opposite or no difference: shift is similar or larger with batch norm. To first order
    $G'_i - G_i = -\eta \sum_{j<i} H_{ij} g_j$: the measure is curvature times step size. So both arms' shift
    vanishes with the learning rate, the answer depends on the matching, and near the stability threshold
    ($\lambda_{\max} \approx 2/\eta$) the cosine can approach -1. The deep linear network's contrast is that of
    a flat plateau against the stability threshold.

    ## Threats
    The measure is one of two things called covariate shift: it says nothing about distributions of activations. No
    matching is the only right one. On a narrow VGG-A and a subset of CIFAR-10 no difference was seen at the same
    learning rate, within 0.17 either way, in five seeds (benchmarks/results/vgg-cifar.md). Interpolation between
    learning rates assumes that shift varies smoothly between them. Cosines of several layers are averaged; a single
    layer may differ. Past convergence gradients are short, steps are too, and the cosine of either arm goes to 1: a
    window that reaches there measures convergence. The grid of learning rates was widened after a first look, to 0.01
    and 10, so that own best rates lie inside it; the size of the effect at matched relative updates moved with that,
    its sign did not.
    """

    CODE = "ics-gradient-shift"
    CARD = 12
    TOPIC = "covariate shift"
    SOURCES = (
        "Ioffe & Szegedy 2015 (arXiv:1502.03167), section 2",
        "Article on batch norm, experiment 2",
        "Santurkar et al. 2018 (arXiv:1805.11604), definition 2.1, section 2.2, figure 3, appendix A.1",
    )
    CLAIM = "Batch norm reduces the change of gradients (internal covariate shift)."
    ON_A_CASE = CaseQuestion(
        "shift", differs="the length of the change, relative to the gradient, in place of the cosine"
    )
    ENDPOINT = "Cosine of G and G' with minus without batch norm, over the first 30 % of training, same learning rate"
    MARGIN = 0.05
    MARGIN_REASON = "a twentieth of the way from gradients that do not change (1) to unrelated ones (0)"
    CONDITIONS = {"lr": "the same learning rate ({:g})"}
    VARIES = {"lr": "matching"}
    ARMS = {
        "none": Arm("no batch norm", norms.none()),
        "batch": Arm("batch norm", norms.batch()),
        "dln-none": Arm("deep linear, no batch norm", norms.none()),
        "dln-batch": Arm("deep linear, batch norm", norms.batch()),
    }
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 8, "width": 64},
            "batch": 128,
            "steps": 200,
            "lr": 0.1,
            "lrs": [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
            "every": 4,
            "sites": None,
            "train": 6000,
            "test": 2000,
            "linear": None,
        },
        # For a CPU: the source's network narrower, and the beginning of its training.
        vgg={"network": {"name": "vgg-a", "width": 16}, "steps": 300, "lrs": [0.03, 0.1, 0.3], "every": 10},
        full={
            "network": {"name": "vgg-a"},
            "steps": 15000,
            "lrs": [0.003, 0.01, 0.03, 0.1, 0.3],
            "every": 50,
            "train": None,
            "test": None,
            "linear": {"steps": 10000, "lrs": [1e-7, 1e-6], "every": 50, "sites": [*LINEAR_SITES]},
        },
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield both arms at every learning rate, and the deep linear networks."""
        for lr in settings["lrs"]:
            for arm in MAIN:
                yield arm, {"lr": lr}
        if settings["linear"] is not None:
            for lr in settings["linear"]["lrs"]:
                for arm in LINEAR:
                    yield arm, {"lr": lr}

    def network(self, cell: Cell, data: "Dataset", device: str) -> nn.Module:
        """Return the settings' network, or the deep linear one."""
        if cell.arm in LINEAR:
            return deep_linear(norm=self.norm(cell), seed=cell.seed).to(device)
        return super().network(cell, data, device)

    def split(self, cell: Cell, data: "Dataset", device: str) -> "Split":
        """Return the data, or Gaussian data for the deep linear network."""
        return gaussian_regression(cell.seed).to(device) if cell.arm in LINEAR else super().split(cell, data, device)

    def options(self, cell: Cell) -> dict[str, Any]:
        """Read the shift of every layer, and how far the weights move."""
        settings = cell.settings
        if cell.arm in LINEAR:
            linear = settings["linear"]
            return {
                "steps": linear["steps"],
                "batch_size": len(gaussian_regression(cell.seed).y_train),
                "probes": [CovariateShift(linear["sites"])],
                "every": linear["every"],
                "criterion": half_squares,
            }
        record, lr = recorder(cell, "update"), float(cell.point["lr"])
        every, until = settings["every"], math.ceil(WINDOW * settings["steps"])

        def watch(step: int, model: nn.Module) -> Iterator[Record]:
            """Yield the length of the update over that of the weights, at the probed steps."""
            if step % every or step >= until:
                return
            weights = [
                weight for name, weight in model.named_parameters() if name.endswith(("linear.weight", "head.weight"))
            ]
            moved = torch.stack([weight.grad.norm() for weight in weights if weight.grad is not None]).norm()
            size = torch.stack([weight.detach().norm() for weight in weights]).norm()
            yield record("relative_update", lr * float(moved) / float(size), step)

        probes = [CovariateShift(settings["sites"])]
        return {"probes": probes, "every": every, "probe_until": until, "watch": watch}

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the cosine at the same rate; other matchings, lengths and the deep linear network beside it."""
        lr, linear = evidence.settings["lr"], evidence.settings["linear"]
        matched = Quantity("cosine of G and G' at the same relative update", partial(_cosine_at_the_same_update, lr=lr))
        cosine: dict[str, Any] = {
            "first": "batch",
            "second": "none",
            "says": f"{KEEPS} is {{effect}} with batch norm",
            "comparative": ("higher", "lower"),
        }
        update = {"matching": "the same relative update"}
        yield Contrast(COSINE, at={"lr": lr}, name="same learning rate", **cosine)
        yield Contrast(matched, conditions=update, name="same relative update", **cosine)
        yield Contrast(COSINE, at={"lr": Best("lr")}, name="own best learning rates", **cosine)
        for quantity, name, how in (
            (RELATIVE, "relative length", ", relative to its length"),
            (LENGTH, "raw length", " in raw length, which the gradient's own length confounds"),
        ):
            yield Contrast(
                quantity,
                "none",
                "batch",
                at={"lr": lr},
                scale="log-ratio",
                claim=f"With batch norm the gradient changes less{how}.",
                name=name,
                says=f"the change of the gradient{how.partition(', which')[0]} is {{effect}} with batch norm",
                comparative=("smaller", "larger"),
                margin=math.log(1.2),
                margin_reason="a fifth of the length, well below the differences between layers",
            )
        for rate in linear["lrs"] if linear is not None else ():
            yield Contrast(
                mean("cosine", COSINE.words, probe="covariate_shift"),
                LINEAR[1],
                LINEAR[0],
                at={"lr": rate},
                claim="In a deep linear network batch norm reduces the change of gradients.",
                name=f"deep linear, {rate:g}",
                says=f"{KEEPS} is {{effect}} with batch norm",
                comparative=("higher", "lower"),
            )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the cosine over steps, over learning rates and by depth, the length of the shift, and the loss."""
        lr, lrs = evidence.settings["lr"], evidence.settings["lrs"]
        shown = _later(evidence.select(arm=MAIN, before=WINDOW * evidence.settings["steps"]))
        common: dict[str, Any] = {"arms": list(self.ARMS), "labels": {**self.wording.arms, **LINEAR_SITES}}
        said = {arm: COSINE.text(evidence, arm=arm, lr=lr) for arm in MAIN}
        lengths = {arm: RELATIVE.text(evidence, arm=arm, lr=lr) for arm in MAIN}
        least = {arm: COSINE.text(evidence, arm=arm, lr=lrs[0]) for arm in MAIN}
        figures = [
            curves(
                shown.filter(pl.col("lr") == lr),
                y=["cosine", "relative"],
                slug="shift",
                title=f"A layer's gradient before and after the update of those in front, learning rate {lr:g}",
                y_title="cos(G, G') and |G' - G| / |G|, mean over layers",
                caption=f"Mean cosine {said['none']} without, {said['batch']} with batch norm (1: no shift); mean "
                f"relative length {lengths['none']} and {lengths['batch']}.",
                **common,
            ),
            curves(
                shown.filter(pl.col("name") == "cosine"),
                y="cosine",
                x="lr",
                log_x=True,
                slug="cosine-by-rate",
                title="Shift against the learning rate",
                x_title="Learning rate",
                y_title="cos(G, G'), mean over layers and steps",
                caption="From the smallest learning rate to the common one the cosine goes "
                + " and ".join(f"from {least[arm]} to {said[arm]} with {self.ARMS[arm]}" for arm in MAIN)
                + ": shift shrinks with the step.",
                **common,
            ),
            by_depth(
                evidence.select(probe="covariate_shift", arm=MAIN, lr=lr),
                y="gradient_norm",
                slug="gradient-by-depth",
                title="Length of the weight gradient by depth",
                y_title="|G|",
                caption=self._depth_said(evidence, lr),
                **common,
            ),
            self.curves(evidence, "loss", at={"arm": MAIN, "lr": lr}, slug="loss"),
        ]
        if evidence.settings["linear"] is not None:
            at = {"arm": LINEAR, "lr": evidence.settings["linear"]["lrs"][-1]}
            figures += [
                self.curves(
                    evidence,
                    "cosine",
                    probe="covariate_shift",
                    at=at,
                    facet="site",
                    slug="cosine-linear",
                    title=f"The deep linear network, learning rate {at['lr']:g}",
                    y_title="cos(G, G')",
                    caption="Layers 9 and 17 of 25.",
                    **common,
                ),
                self.curves(
                    evidence,
                    "loss",
                    at=at,
                    slug="loss-linear",
                    title=f"Loss of the deep linear network, learning rate {at['lr']:g}",
                    y_title="Half the sum of squared errors",
                ),
            ]
        return figures

    def _depth_said(self, evidence: Evidence, lr: float) -> str:
        start = evidence.select(probe="covariate_shift", name="gradient_norm", lr=lr, step=0)
        said = []
        for arm in MAIN:
            first, last = (
                start.filter((pl.col("arm") == arm) & (pl.col("site") == site))["value"].mean()
                for site in ("blocks.0.linear", "head")
            )
            if isinstance(first, float) and isinstance(last, float) and last:
                said.append(f"{number(first / last, 2)} times that of the last {self.ARMS[arm]}")
        return f"At the first step the first layer's gradient is {' and '.join(said)}."

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate shift, update and loss at every learning rate."""
        return [
            self.grid_table(
                [COSINE, RELATIVE, LENGTH, UPDATE, last("val_loss", "validation loss")],
                evidence,
                rows={"arm": MAIN, "lr": evidence.settings["lrs"]},
                title="Shift by learning rate",
                caption=f"Means over {len(evidence.seeds)} seeds, the first 30 % of steps, all layers but the first.",
            )
        ]


def _later(frame: pl.DataFrame) -> pl.DataFrame:
    """Leave out the first layer, whose gradient nothing before it can shift."""
    return frame.filter((pl.col("probe") == "covariate_shift") & (pl.col("site") != "blocks.0.linear"))


def _window(evidence: Evidence, name: str, arm: str, lr: float) -> pl.DataFrame:
    """Return the records of a name over all layers and the steps of the window, which ends at convergence."""
    converged = evidence.arrivals(0.99, arm=arm, lr=lr).steps
    ends = pl.DataFrame(
        {"seed": list(evidence.seeds), "end": np.minimum(converged, WINDOW * evidence.settings["steps"])}
    )
    frame = _later(evidence.select(name=name, arm=arm, lr=lr))
    return frame.join(ends, on="seed").filter(pl.col("step") < pl.col("end"))


def _length(name: str, words: str) -> Quantity:
    return Quantity(words, lambda evidence, arm, lr: evidence.mean_log(_window(evidence, name, arm, lr)), logs=True)


def _cosine(evidence: Evidence, arm: str, lr: float) -> Floats:
    return evidence.per_seed(_window(evidence, "cosine", arm, lr).filter(pl.col("value").is_finite()))


def _cosine_at_the_same_update(evidence: Evidence, arm: str, lr: float) -> Floats:
    """Return the cosine where the relative update is that of the network without batch norm at a learning rate."""
    if arm == "none":
        return _cosine(evidence, arm, lr)
    lrs = evidence.settings["lrs"]
    target = np.exp(UPDATE(evidence, arm="none", lr=lr))
    updates = np.array([np.exp(UPDATE(evidence, arm=arm, lr=rate)) for rate in lrs])
    cosines = np.array([_cosine(evidence, arm, rate) for rate in lrs])
    return np.array([interpolate(updates[:, i], cosines[:, i], float(at)) for i, at in enumerate(target)])


COSINE = Quantity("cosine of G and G'", _cosine)
RELATIVE = _length("relative", "|G' - G| / |G|")
LENGTH = _length("l2", "|G' - G|")
UPDATE = mean_log("relative_update", "relative update", probe="update")
