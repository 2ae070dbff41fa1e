"""Internal covariate shift measured on gradients: does batch norm reduce it?"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
import torch
from torch import nn

from normscope.plots import Figure, Table, by_depth, curves, number
from normscope.probes.covariate_shift import CovariateShift
from normscope.records import Cell, Outcome, Record, Verdict
from normscope.studies.evidence import Evidence, typical
from normscope.studies.judging import best_rate, conjunction, interpolate
from normscope.studies.lab import norms
from normscope.studies.lab.data import Split, gaussian_regression
from normscope.studies.lab.models import build, deep_linear
from normscope.studies.lab.train import half_squares, train
from normscope.studies.study import AbstractStudy

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

ARMS = {"none": "no batch norm", "batch": "batch norm"}
LINEAR_SITES = {"blocks.8.linear": "layer 9", "blocks.16.linear": "layer 17"}
LINEAR = {"dln-none": "deep linear, no batch norm", "dln-batch": "deep linear, batch norm"}
COMPARED = "cos(G, G') without minus with batch norm, "
REFUTED_BELOW = -0.1
TWENTY_PERCENT = math.log(1.2)
WINDOW = 0.3


class IcsGradientShift(AbstractStudy):
    r"""Batch norm does not reduce the covariate shift of gradients.

    ## Claim
    Internal covariate shift is measured as the change of a layer's gradient when the layers before it are updated
    (:math:`G` before, :math:`G'` after, same batch; Santurkar et al. 2018, definition 2.1). By this measure "using
    batch norm does not indicate a reduction" of it; often there is more (article on batch norm, experiment 2). In a
    deep linear network the network without is said to have almost none, while with batch norm :math:`G` and :math:`G'`
    are almost uncorrelated (section 2.2, figure 3).

    ## Method
    Networks with and without batch norm share initial weights and batches. In every layer but the first, which nothing
    precedes, the cosine of :math:`G` and :math:`G'` is read every few steps over the first 30 % of training and before
    99 % training accuracy. The effect is the cosine without minus the cosine with batch norm, averaged over layers and
    steps, so a positive one speaks for the claim. It is taken at three matchings: the same learning rate (0.1); the
    same relative update :math:`\|\Delta W\|/\|W\|`, by interpolation over a grid of learning rates; each arm at its own
    best learning rate by validation loss. Supported if at all three the interval lies above -0.05; refuted if at one of
    them it lies below -0.1, corrected for looking at three. Also: the relative and the raw length of :math:`G'-G`, the
    cosine against the learning rate, and the deep linear network of the source (25 matrices of 10 x 10, Gaussian data,
    gradient descent on half the sum of squared errors), which only the full preset runs.

    ## Prediction
    At the same learning rate supported: shift is similar or larger with batch norm. To first order
    :math:`G'_i - G_i = -\eta \sum_{j<i} H_{ij} g_j`: the measure is curvature times step size. So both arms' shift
    vanishes with the learning rate, the contrast depends on the matching, and near the stability threshold
    (:math:`\lambda_{\max} \approx 2/\eta`) the cosine can approach -1. The deep linear network's contrast is that of a
    flat plateau against the stability threshold.

    ## Threats
    The measure is one of two things called covariate shift: it says nothing about distributions of activations. The
    matching decides: none is the only right one. Interpolation between learning rates assumes that shift varies
    smoothly between them. Cosines of several layers are averaged; a single layer may differ. Past convergence gradients
    are short, steps are too, and the cosine of either arm goes to 1: a window that reaches there measures convergence.
    The grid of learning rates was widened after a first look, to 0.01 and 10, so that own best rates lie inside it; the
    size of the effect at matched relative updates moved with that, its sign and the verdict did not.
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
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
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
        "vgg": {
            "network": {"name": "vgg-a", "width": 16},
            "batch": 128,
            "steps": 300,
            "lr": 0.1,
            "lrs": [0.03, 0.1, 0.3],
            "every": 10,
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
            "linear": {"steps": 10000, "lrs": [1e-7, 1e-6], "every": 50, "sites": [*LINEAR_SITES]},
        },
    }

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
        said = "; ".join(f"{part.effect.point:+.3f} at {part.endpoint.removeprefix(COMPARED)}" for part in matchings)
        reason = f"Cosine without minus with batch norm: {said}."
        if outcome is Outcome.SUPPORTED:
            reason += " The shift is nowhere smaller with batch norm by more than the margin."
        elif outcome is Outcome.REFUTED:
            reason += f" At {decisive.endpoint.removeprefix(COMPARED)} batch norm does reduce it."
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
        return self.part(
            evidence,
            values,
            endpoint=COMPARED + how,
            refuted_below=REFUTED_BELOW,
            reason=lambda effect: f"Batch norm has the {'more' if effect.point > 0 else 'less'} shifted gradients.",
        )

    def _lengths(self, evidence: Evidence) -> Iterator[Verdict]:
        lr = evidence.settings["lr"]
        for name, what, note in (
            ("relative", "|G' - G| / |G|", "relative to the gradient"),
            ("l2", "|G' - G|", "in raw length, which the gradient's own length confounds"),
        ):
            yield self.part(
                evidence,
                _shift(evidence, "batch", lr, name) - _shift(evidence, "none", lr, name),
                scale="log-ratio",
                claim=f"With batch norm gradients do not shift less, {note}.",
                endpoint=f"{what} with over without batch norm, learning rate {lr:g}",
                margin=-TWENTY_PERCENT,
                reason=lambda effect: f"The shift is {math.exp(effect.point):.2f} times as long with batch norm.",
            )

    def _linear(self, evidence: Evidence) -> Iterator[Verdict]:
        linear = evidence.settings["linear"]
        for lr in linear["lrs"] if linear is not None else ():
            plain, normed = (
                evidence.per_seed(evidence.select(probe="covariate_shift", name="cosine", arm=arm, lr=lr))
                for arm in LINEAR
            )
            yield self.part(
                evidence,
                plain - normed,
                claim="In a deep linear network batch norm does not reduce covariate shift.",
                endpoint=f"cos(G, G') without minus with batch norm, deep linear network, layers 9 and 17, "
                f"learning rate {lr:g}, {linear['steps']} steps",
                refuted_below=REFUTED_BELOW,
                reason=f"Mean cosine {typical(plain)} without, {typical(normed)} with batch norm.",
            )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the cosine over steps, over learning rates and by depth, the length of the shift, and the loss."""
        lr, lrs = evidence.settings["lr"], evidence.settings["lrs"]
        shown = _later(evidence.select(arm=list(ARMS), before=WINDOW * evidence.settings["steps"]))
        at = shown.filter(pl.col("lr") == lr)
        common: dict[str, Any] = {"arms": [*ARMS, *LINEAR], "labels": {**ARMS, **LINEAR, **LINEAR_SITES}}
        mean = {arm: typical(_cosine(evidence, arm, lr)) for arm in ARMS}
        lengths = {arm: typical(_shift(evidence, arm, lr, "relative"), logs=True) for arm in ARMS}
        least = {arm: typical(_cosine(evidence, arm, lrs[0])) for arm in ARMS}
        figures = [
            curves(
                at,
                y=["cosine", "relative"],
                slug="shift",
                title=f"A layer's gradient before and after the update of those in front, learning rate {lr:g}",
                y_title="cos(G, G') and |G' - G| / |G|, mean over layers",
                caption=f"Mean cosine {mean['none']} without, {mean['batch']} with batch norm (1: no shift); mean "
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
                + " and ".join(f"from {least[arm]} to {mean[arm]} with {ARMS[arm]}" for arm in ARMS)
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
                caption=evidence.final_losses(ARMS, lr=lr),
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
                    **common,
                ),
                curves(
                    linear.filter(pl.col("probe") == "training"),
                    y="loss",
                    slug="loss-linear",
                    title=f"Loss of the deep linear network, learning rate {rate:g}",
                    y_title="Half the sum of squared errors",
                    log=True,
                    **common,
                ),
            ]
        return figures

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate shift, update and loss at every learning rate."""
        rows = []
        for arm in ARMS:
            for lr in evidence.settings["lrs"]:
                cells = [
                    typical(_cosine(evidence, arm, lr)),
                    *(typical(_shift(evidence, arm, lr, name), logs=True) for name in ("relative", "l2")),
                    typical(_update(evidence, arm, lr)),
                    typical(evidence.per_seed(evidence.select(probe="training", name="val_loss", arm=arm, lr=lr))),
                ]
                rows.append((ARMS[arm], lr, *cells))
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


def _window(evidence: Evidence, arm: str, lr: float, name: str) -> pl.DataFrame:
    """Return one quantity's records over all layers and the steps of the window, which ends at convergence."""
    horizon = evidence.settings["steps"]
    converged, _ = evidence.steps_to(0.99, horizon=horizon, arm=arm, lr=lr)
    ends = pl.DataFrame({"seed": list(evidence.seeds), "end": np.minimum(converged, WINDOW * horizon)})
    frame = _later(evidence.select(name=name, arm=arm, lr=lr))
    return frame.join(ends, on="seed").filter(pl.col("step") < pl.col("end"))


def _shift(evidence: Evidence, arm: str, lr: float, name: str) -> np.ndarray:
    """Return the mean logarithm of a length per seed."""
    return evidence.mean_log(_window(evidence, arm, lr, name))


def _cosine(evidence: Evidence, arm: str, lr: float) -> np.ndarray:
    frame = _window(evidence, arm, lr, "cosine")
    return evidence.per_seed(frame.filter(pl.col("value").is_finite()))


def _update(evidence: Evidence, arm: str, lr: float) -> np.ndarray:
    """Return the geometric mean of the relative update per seed."""
    return np.exp(evidence.mean_log(evidence.select(probe="update", name="relative_update", arm=arm, lr=lr)))


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
