"""Internal covariate shift measured on gradients: does batch norm reduce it?"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from torch import nn

from normscope.plots import Figure, Table, by_depth, curves, number
from normscope.probes import CovariateShift
from normscope.records import Outcome, Record, Verdict
from normscope.records.store import Cell
from normscope.stats import decide, interval
from normscope.studies._evidence import Evidence
from normscope.studies._judging import best_rate, conjunction, interpolate, unmeasured, usable
from normscope.studies._study import AbstractStudy
from normscope.studies.lab import norms
from normscope.studies.lab.data import Split, gaussian_regression
from normscope.studies.lab.models import build, deep_linear
from normscope.studies.lab.train import half_squares, train

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

ARMS = {"none": "no batch norm", "batch": "batch norm"}
LINEAR = {"dln-none": "deep linear, no batch norm", "dln-batch": "deep linear, batch norm"}
REFUTED_BELOW = -0.1
TWENTY_PERCENT = math.log(1.2)
WINDOW = 0.3


class IcsGradientShift(AbstractStudy):
    r"""Batch norm does not reduce the covariate shift of gradients.

    ## Claim
    Internal covariate shift is measured as the change of a layer's gradient when the layers before it are updated
    (:math:`G` before, :math:`G'` after, same batch; Santurkar et al. 2018, definition 2.1). By this measure "using batch
    norm does not indicate a reduction" of it; often there is more (article on batch norm, experiment 2). In a deep linear
    network the network without is said to have almost none, while with batch norm :math:`G` and :math:`G'` are almost
    uncorrelated (section 2.2, figure 3).

    ## Method
    Networks with and without batch norm share initial weights and batches. In every layer but the first, which nothing
    precedes, the cosine of :math:`G` and :math:`G'` is read every few steps over the first 30 % of training and before
    99 % training accuracy. The effect is the cosine without minus the cosine with batch norm, averaged over layers and
    steps, so a positive one speaks for the claim. It is taken at three matchings: the same learning rate (0.1); the same
    relative update :math:`\|\Delta W\|/\|W\|`, by interpolation over a grid of learning rates; each arm at its own best
    learning rate by validation loss. Supported if at all three the interval lies above -0.05; refuted if at one of them
    it lies below -0.1, corrected for looking at three. Also: the relative and the raw length of :math:`G'-G`, the cosine
    against the learning rate, and the deep linear network of the source (25 matrices of 10 x 10, Gaussian data, gradient
    descent on half the sum of squared errors), which only the full preset runs.

    ## Prediction
    At the same learning rate supported: shift is similar or larger with batch norm. To first order
    :math:`G'_i - G_i = -\eta \sum_{j<i} H_{ij} g_j`: the measure is curvature times step size. So both arms' shift
    vanishes with the learning rate, the contrast depends on the matching, and near the stability threshold
    (:math:`\lambda_{\max} \approx 2/\eta`) the cosine can approach -1. The deep linear network's contrast is that of a flat
    plateau against the stability threshold.

    ## Threats
    The measure is one of two things called covariate shift: it says nothing about distributions of activations. The
    matching decides: none is the only right one. Interpolation between learning rates assumes that shift varies smoothly
    between them. Cosines of several layers are averaged; a single layer may differ. Past convergence gradients are short,
    steps are too, and the cosine of either arm goes to 1: a window that reaches there measures convergence.
    """

    CODE = "ics-gradient-shift"
    CARD = 12
    TOPIC = "covariate shift"
    SOURCES = (
        "Article on batch norm, experiment 2",
        "Santurkar et al. 2018 (arXiv:1805.11604), definition 2.1, section 2.2, figure 3, appendix A.1",
    )
    CLAIM = "Batch norm does not reduce internal covariate shift, measured as the change of gradients."
    ENDPOINT = "cos(G, G') without minus with batch norm, over the first 30 % of training, worst of three matchings"
    MARGIN = -0.05
    PRESETS: Mapping[str, Mapping[str, Any]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 8, "width": 64},
            "batch": 128,
            "steps": 200,
            "lr": 0.1,
            "lrs": [0.01, 0.03, 0.1, 0.3, 1.0, 3.0],
            "every": 4,
            "sites": None,
            "train": 6000,
            "test": 2000,
            "linear": None,
        },
        "full": {
            "network": {"name": "vgg-a"},
            "batch": 128,
            "steps": 15000,
            "lr": 0.1,
            "lrs": [0.003, 0.01, 0.03, 0.1, 0.3],
            "every": 50,
            "sites": None,
            "train": None,
            "test": None,
            "linear": {"steps": 10000, "lrs": [1e-7, 1e-6], "every": 50, "sites": ["blocks.8.linear", "blocks.16.linear"]},
        },
    }  # fmt: skip

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield both arms at every learning rate, and the deep linear networks."""
        for lr in settings["lrs"]:
            for arm in ARMS:
                yield arm, {"lr": lr}
        if settings["linear"] is not None:
            for lr in settings["linear"]["lrs"]:
                for arm in LINEAR:
                    yield arm, {"lr": lr}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Train one arm at one learning rate and read the shift of every layer."""
        settings, lr = cell.settings, float(cell.point["lr"])
        norm = norms.batch() if cell.arm.endswith("batch") else norms.none()
        if cell.arm in LINEAR:
            linear = settings["linear"]
            model: nn.Module = deep_linear(norm=norm, seed=cell.seed).to(device)
            part: Split = gaussian_regression(cell.seed).to(device)
            return train(
                model,
                part,
                cell=cell.id,
                seed=cell.seed,
                steps=linear["steps"],
                lr=lr,
                batch_size=len(part.y_train),
                probes=[CovariateShift(linear["sites"])],
                every=linear["every"],
                criterion=half_squares,
            )
        split = data.split(cell.seed, train=settings["train"], test=settings["test"]).to(device)
        model = build(
            norm=norm, shape=data.shape, classes=data.classes, seed=cell.seed, **settings["network"]
        ).to(device)  # fmt: skip
        until = math.ceil(WINDOW * settings["steps"])
        return train(
            model,
            split,
            cell=cell.id,
            seed=cell.seed,
            steps=settings["steps"],
            lr=lr,
            batch_size=settings["batch"],
            probes=[CovariateShift(settings["sites"])],
            every=settings["every"],
            probe_until=until,
            watch=_relative_update(cell.id, lr, settings["every"], until),
        )

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the cosine under all three matchings together."""
        matchings = self._matchings(evidence)
        outcome, p, decisive = conjunction(matchings, 1 - evidence.level)
        said = "; ".join(f"{part.effect.point:+.3f} at {_words(part)}" for part in matchings)
        reason = f"Cosine without minus with batch norm: {said}."
        if outcome is Outcome.SUPPORTED:
            reason += " The shift is nowhere smaller with batch norm by more than the margin."
        elif outcome is Outcome.REFUTED:
            reason += f" At {_words(decisive)} batch norm does reduce it: the answer depends on the matching."
        parts = [*matchings, *self._lengths(evidence), *self._linear(evidence)]
        return self.verdict(outcome, decisive.effect, reason=reason, p_value=p, primary=True, parts=parts)

    def _matchings(self, evidence: Evidence) -> list[Verdict]:
        lr, lrs = evidence.settings["lr"], evidence.settings["lrs"]
        table = {arm: {rate: _cosine(evidence, arm, rate) for rate in lrs} for arm in ARMS}
        updates = {arm: np.array([_update(evidence, arm, rate) for rate in lrs]) for arm in ARMS}
        # For each seed: where the network without batch norm stands at the common learning rate.
        target = updates["none"][list(lrs).index(lr)]
        at_target = np.array(
            [
                interpolate(
                    updates["batch"][:, seed], [table["batch"][rate][seed] for rate in lrs], float(target[seed])
                )
                for seed in range(len(evidence.seeds))
            ]
        )
        best = {arm: best_rate(evidence, arm) for arm in ARMS}
        own = ", ".join(f"{rate:g} {ARMS[arm]}" for arm, rate in best.items())
        return [
            self._matched(evidence, table["none"][lr] - table["batch"][lr], f"the same learning rate ({lr:g})"),
            self._matched(
                evidence,
                table["none"][lr] - at_target,
                f"the same relative update ({np.nanmean(target):.2g} a step)",
            ),
            self._matched(
                evidence,
                table["none"][best["none"]] - table["batch"][best["batch"]],
                f"own best learning rates ({own})",
            ),
        ]

    def _matched(self, evidence: Evidence, values: np.ndarray, how: str) -> Verdict:
        endpoint = f"cos(G, G') without minus with batch norm, {how}"
        values = values[usable(values)]
        if not len(values):
            effect = unmeasured(0, evidence.level, "difference")
            return self.verdict(
                Outcome.INCONCLUSIVE, effect, endpoint=endpoint, p_value=1.0, reason="No pair of runs could be matched."
            )
        outcome, p = decide(values, margin=self.MARGIN, refuted_below=REFUTED_BELOW, level=evidence.level)
        effect = interval(values, scale="difference", level=evidence.level)
        missing = len(evidence.seeds) - len(values)
        reason = "Batch norm has the more shifted gradients." if effect.point > 0 else "It has the less shifted ones."
        if missing:
            reason += f" {missing} seeds could not be matched."
        return self.verdict(outcome, effect, endpoint=endpoint, p_value=p, reason=reason)

    def _lengths(self, evidence: Evidence) -> Iterator[Verdict]:
        lr = evidence.settings["lr"]
        for name, what, note in (
            ("relative", "|G' - G| / |G|", "relative to the gradient"),
            ("l2", "|G' - G|", "in raw length, which the gradient's own length confounds"),
        ):
            normed, plain = (_shift(evidence, arm, lr, name, log=True) for arm in ("batch", "none"))
            ratio = (normed - plain)[usable(normed, plain)]
            if not len(ratio):
                continue
            outcome, p = decide(ratio, margin=-TWENTY_PERCENT, level=evidence.level)
            effect = interval(ratio, scale="log-ratio", level=evidence.level)
            yield self.verdict(
                outcome,
                effect,
                claim=f"With batch norm gradients do not shift less, {note}.",
                endpoint=f"{what} with over without batch norm, learning rate {lr:g}",
                margin=-TWENTY_PERCENT,
                p_value=p,
                reason=f"The shift is {math.exp(effect.point):.2f} times as long with batch norm.",
            )

    def _linear(self, evidence: Evidence) -> Iterator[Verdict]:
        linear = evidence.settings["linear"]
        for lr in linear["lrs"] if linear is not None else ():
            cosines = {
                arm: evidence.per_seed(evidence.select(probe="covariate_shift", name="cosine", arm=arm, lr=lr))
                for arm in LINEAR
            }
            plain, normed = cosines["dln-none"], cosines["dln-batch"]
            values = (plain - normed)[usable(plain, normed)]
            if not len(values):
                continue
            outcome, p = decide(values, margin=self.MARGIN, refuted_below=REFUTED_BELOW, level=evidence.level)
            yield self.verdict(
                outcome,
                interval(values, scale="difference", level=evidence.level),
                claim="In a deep linear network batch norm does not reduce covariate shift.",
                endpoint=f"cos(G, G') without minus with batch norm, deep linear network, layers 9 and 17, "
                f"learning rate {lr:g}, {linear['steps']} steps",
                p_value=p,
                reason=f"Mean cosine {np.nanmean(plain):.2f} without, {np.nanmean(normed):.2f} with batch norm.",
            )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the cosine over steps, over learning rates and by depth, the length of the shift, and the loss."""
        lr, lrs = evidence.settings["lr"], evidence.settings["lrs"]
        shown = _later(evidence.select(arm=list(ARMS), before=WINDOW * evidence.settings["steps"]))
        at = shown.filter(pl.col("lr") == lr)
        common: dict[str, Any] = {"arms": [*ARMS, *LINEAR], "labels": {**ARMS, **LINEAR}}
        mean = {arm: float(np.nanmean(_cosine(evidence, arm, lr))) for arm in ARMS}
        lengths = {arm: math.exp(float(np.nanmean(_shift(evidence, arm, lr, "relative", log=True)))) for arm in ARMS}
        ends = {arm: [float(np.nanmean(_cosine(evidence, arm, rate))) for rate in (lrs[0], lr)] for arm in ARMS}
        figures = [
            curves(
                at,
                y="cosine",
                slug="cosine",
                title=f"Cosine of a layer's gradient before and after the others' update, learning rate {lr:g}",
                y_title="cos(G, G'), mean over layers",
                caption=f"Mean {mean['none']:.2f} without and {mean['batch']:.2f} with batch norm; 1 would be no shift.",
                **common,
            ),
            curves(
                at,
                y="relative",
                slug="relative",
                title=f"Length of the shift relative to the gradient, learning rate {lr:g}",
                y_title="|G' - G| / |G|, geometric mean over layers",
                log=True,
                caption=f"Mean {lengths['none']:.2g} without and {lengths['batch']:.2g} with batch norm.",
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
                caption="; ".join(
                    f"{ARMS[arm]} falls from {low:.2f} at {lrs[0]:g} to {high:.2f} at {lr:g}"
                    if high < low
                    else f"{ARMS[arm]} goes from {low:.2f} at {lrs[0]:g} to {high:.2f} at {lr:g}"
                    for arm, (low, high) in ends.items()
                ).capitalize()
                + ": shift shrinks with the step.",
                **common,
            ),
            by_depth(
                evidence.select(probe="covariate_shift", arm=list(ARMS), lr=lr),
                y="gradient_norm",
                slug="gradient-by-depth",
                title="Length of the weight gradient by depth",
                y_title="|G|",
                caption=_depth_said(evidence, lr),
                **common,
            ),
            curves(
                evidence.select(probe="training", name="loss", arm=list(ARMS), lr=lr),
                y="loss",
                slug="loss",
                title=f"Training loss, learning rate {lr:g}",
                y_title="Cross-entropy of the step's batch",
                log=True,
                caption="The shift is compared before either network has converged.",
                **common,
            ),
        ]
        if evidence.settings["linear"] is not None:
            rate = evidence.settings["linear"]["lrs"][-1]
            linear = evidence.select(arm=list(LINEAR), lr=rate)
            figures += [
                curves(
                    linear.filter(pl.col("probe") == "covariate_shift"),
                    y="cosine",
                    facet="site",
                    slug="cosine-linear",
                    title=f"The deep linear network, learning rate {rate:g}",
                    y_title="cos(G, G')",
                    caption="Layers 9 and 17 of 25.",
                    **{
                        **common,
                        "labels": common["labels"] | {"blocks.8.linear": "layer 9", "blocks.16.linear": "layer 17"},
                    },
                ),
                curves(
                    linear.filter(pl.col("probe") == "training"),
                    y="loss",
                    slug="loss-linear",
                    title=f"Loss of the deep linear network, learning rate {rate:g}",
                    y_title="Half the sum of squared errors",
                    log=True,
                    caption="Full-batch gradient descent.",
                    **common,
                ),
            ]
        return figures

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate shift, update and loss at every learning rate."""
        rows = []
        measures: list[Callable[[str, float], np.ndarray]] = [
            lambda arm, lr: _cosine(evidence, arm, lr),
            lambda arm, lr: np.exp(_shift(evidence, arm, lr, "relative", log=True)),
            lambda arm, lr: np.exp(_shift(evidence, arm, lr, "l2", log=True)),
            lambda arm, lr: _update(evidence, arm, lr),
            lambda arm, lr: evidence.per_seed(evidence.select(probe="training", name="val_loss", arm=arm, lr=lr)),
        ]
        for arm in ARMS:
            for lr in evidence.settings["lrs"]:
                found = [measure(arm, lr) for measure in measures]
                kept = [values[np.isfinite(values)] for values in found]
                rows.append((ARMS[arm], lr, *(number(float(v.mean()), 3) if len(v) else "" for v in kept)))
        return [
            Table(
                "Shift by learning rate",
                ("Arm", "Learning rate", "cos(G, G')", "|G'-G|/|G|", "|G'-G|", "Relative update", "Validation loss"),
                tuple(rows),
                f"Means over {len(evidence.seeds)} seeds, the first 30 % of steps, all layers but the first.",
            )
        ]


def _relative_update(cell: str, lr: float, every: int, until: int) -> Callable[[int, nn.Module], Iterator[Record]]:
    """Return a watcher that yields the length of the update over that of the weights, at the probed steps."""

    def watch(step: int, model: nn.Module) -> Iterator[Record]:
        if step % every or step >= until:
            return
        weights = [
            weight for name, weight in model.named_parameters() if name.endswith(("linear.weight", "head.weight"))
        ]
        moved = torch.stack([weight.grad.norm() for weight in weights if weight.grad is not None]).norm()
        size = torch.stack([weight.detach().norm() for weight in weights]).norm()
        yield Record(cell, step, "update", "", "relative_update", lr * float(moved) / float(size))

    return watch


def _later(frame: pl.DataFrame) -> pl.DataFrame:
    """Leave out the first layer, whose gradient nothing before it can shift."""
    return frame.filter((pl.col("probe") == "covariate_shift") & (pl.col("site") != "blocks.0.linear"))


def _shift(evidence: Evidence, arm: str, lr: float, name: str, *, log: bool = False) -> np.ndarray:
    """Return one quantity's mean over layers and the steps of the window, per seed; logarithms if ``log``."""
    settings = evidence.settings
    horizon = settings["steps"]
    converged, _ = evidence.steps_to(0.99, horizon=horizon, arm=arm, lr=lr)
    ends = pl.DataFrame({"seed": list(evidence.seeds), "end": np.minimum(converged, WINDOW * horizon)})
    frame = _later(evidence.select(name=name, arm=arm, lr=lr))
    frame = frame.join(ends, on="seed").filter(pl.col("step") < pl.col("end"))
    value = pl.col("value")
    fine = value.is_finite() & (value > 0) if log else value.is_finite()
    return evidence.per_seed(frame.filter(fine), value.log().mean() if log else value.mean())


def _cosine(evidence: Evidence, arm: str, lr: float) -> np.ndarray:
    return _shift(evidence, arm, lr, "cosine")


def _update(evidence: Evidence, arm: str, lr: float) -> np.ndarray:
    frame = evidence.select(probe="update", name="relative_update", arm=arm, lr=lr)
    fine = frame.filter(pl.col("value").is_finite() & (pl.col("value") > 0))
    return np.exp(evidence.per_seed(fine, pl.col("value").log().mean()))


def _words(part: Verdict) -> str:
    """Return the matching that a part's endpoint ends with."""
    return part.endpoint.partition("batch norm, ")[2]


def _depth_said(evidence: Evidence, lr: float) -> str:
    frame = evidence.select(probe="covariate_shift", name="gradient_norm", lr=lr)
    start = frame.filter(pl.col("step") == 0)
    said = []
    for arm, label in ARMS.items():
        first, last = (
            start.filter((pl.col("arm") == arm) & (pl.col("site") == site))["value"].mean()
            for site in ("blocks.0.linear", "head")
        )
        if isinstance(first, float) and isinstance(last, float) and last:
            said.append(f"{number(first / last, 2)} times that of the last {label}")
    return f"At the first step the first layer's gradient is {' and '.join(said)}."
