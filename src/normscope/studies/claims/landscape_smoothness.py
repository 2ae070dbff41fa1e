"""The loss along the gradient: is it smoother with batch norm?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl

from normscope.plots import Figure, Table, curves, landscape_band
from normscope.probes.landscape import LandscapeAlongGradient
from normscope.records import Cell, Outcome, Record, Verdict
from normscope.studies.evidence import Evidence, typical
from normscope.studies.judging import conjunction
from normscope.studies.lab import norms
from normscope.studies.lab.models import build
from normscope.studies.lab.train import train
from normscope.studies.study import AbstractStudy

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

ARMS = {"none": "no batch norm", "batch": "batch norm", "noisy": "noisy batch norm"}
MATCHINGS = {
    "same-step": "the same step sizes",
    "relative-step": "the same relative steps",
    "predicted-decrease": "the same predicted decrease",
}
ENDPOINTS = {
    "loss_range": ("Range of the loss along the gradient", "a narrower range of losses"),
    "gradient_difference": ("Largest change of the gradient", "a smaller change of the gradient"),
    "gradient_difference_relative": (
        "Largest change of the gradient relative to its length",
        "a smaller relative change of the gradient",
    ),
    "effective_beta": ("Effective beta", "a smaller effective beta"),
}
WINDOW = 0.3


class LandscapeSmoothness(AbstractStudy):
    r"""Batch norm smooths the loss along the gradient.

    ## Claim
    "Batch norm gives a smoother profile": along the gradient the loss takes a narrower range of values, the gradient
    changes less (it is more predictive) and the effective smoothness constant beta is smaller (article on batch norm,
    after its experiments; Santurkar et al. 2018, sections 3.1 and 3.2, figure 4). The article speaks of higher
    Lipschitzness where the source means a smaller Lipschitz constant.

    ## Method
    Networks without, with, and with noisy batch norm share initial weights and batches and train at learning rate 0.1.
    Every few steps, on the step's own batch, the loss and its gradient are taken along the gradient at a grid of
    distances. Endpoints: (a) the range of the loss (primary), (b) the largest change of the gradient, also relative to
    its length, (c) effective beta, the largest change per distance over a dense grid, and the curvature
    :math:`g^\top H g / g^\top g` at distance 0. Each is compared at three matchings, since networks whose gradients
    differ in scale are not compared by equal distances: the same step sizes (1/2 to 4 times the learning rate, as in
    the source), the same steps relative to the weights, the same predicted decrease of the loss. The effect is the
    log-ratio of the network without to that with batch norm, averaged over the first 30 % of training. An endpoint is
    supported if the interval lies above log 1.5 at all three; it is a scale artefact if only at the same step sizes;
    refuted if at one of the three the interval lies below log 1.5, corrected for looking at three. Also for shallower
    and deeper networks.

    ## Prediction
    (a) and (b) supported for deep plain networks at the same step sizes; (c) not to be told apart at the same learning
    rate, since beta settles near 2 / learning rate in every arm; reversed in shallow networks with He initialisation.

    ## Threats
    Three matchings are three questions, and a claim that holds at one is not the claim. The line along one gradient is
    not the landscape. A grid can miss a spike between its points. Beta at the source's distances saturates: where the
    gradient after the smallest step is small, it is one over that step. The two networks walk different paths, so they
    are compared at equal time, not at equal loss.
    """

    CODE = "landscape-smoothness"
    CARD = 13
    TOPIC = "landscape"
    SOURCES = (
        "Article on batch norm, what does it do then",
        "Santurkar et al. 2018 (arXiv:1805.11604), sections 3.1 and 3.2, figure 4, appendix B",
    )
    CLAIM = "Along the gradient, batch norm gives a narrower range of losses."
    ENDPOINT = "Range of the loss along the gradient, without over with batch norm, worst of three matchings"
    MARGIN = math.log(1.5)
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "width": 64},
            "depth": 8,
            "depths": [3, 8, 20],
            "batch": 128,
            "lr": 0.1,
            "steps": 200,
            "every": 10,
            "points": 5,
            "dense": [0.001, 0.01, 0.1],
            "train": 6000,
            "test": 2000,
        },
        # For a CPU: the source's network narrower, and the beginning of its training.
        "vgg": {
            "network": {"name": "vgg-a", "width": 16},
            "depth": None,
            "depths": [None],
            "batch": 128,
            "lr": 0.1,
            "steps": 300,
            "every": 10,
            "points": 5,
            "dense": [0.001, 0.01, 0.1],
            "train": 6000,
            "test": 2000,
        },
        "full": {
            "network": {"name": "vgg-a"},
            "depth": None,
            "depths": [None],
            "batch": 128,
            "lr": 0.1,
            "steps": 15000,
            "every": 50,
            "points": 8,
            "dense": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3],
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every arm at the main depth, those without noise at the others."""
        for depth in settings["depths"]:
            for arm in ARMS:
                if arm != "noisy" or depth == settings["depth"]:
                    yield arm, {"depth": depth or 0}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Train one arm and walk along its gradients."""
        settings, depth = cell.settings, int(cell.point["depth"])
        split = data.split(cell.seed, train=settings["train"], test=settings["test"]).to(device)
        factory = {"none": norms.none(), "batch": norms.batch(), "noisy": norms.noisy_batch(cell.seed)}[cell.arm]
        sizes = dict(settings["network"]) | ({"depth": depth} if depth else {})
        model = build(norm=factory, shape=data.shape, classes=data.classes, seed=cell.seed, **sizes).to(device)
        until = math.ceil(WINDOW * settings["steps"])
        main = depth == (settings["depth"] or 0)
        return train(
            model,
            split,
            cell=cell.id,
            seed=cell.seed,
            # Other depths are only compared over the window; what comes after it decides nothing.
            steps=settings["steps"] if main else until,
            lr=settings["lr"],
            batch_size=settings["batch"],
            probes=[LandscapeAlongGradient(points=settings["points"], dense=settings["dense"])],
            every=settings["every"],
            probe_until=2 * until if main else until,
        )

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the range of the loss under all three matchings together."""
        depth = evidence.settings["depth"] or 0
        primary = self._endpoint(evidence, "loss_range", depth)
        parts = [*primary.parts]
        parts += [self._endpoint(evidence, name, depth) for name in ENDPOINTS if name != "loss_range"]
        parts.append(self._curvature(evidence, depth))
        parts.append(self._one(evidence, "loss_range", "same-step", depth, arm="noisy"))
        for other in evidence.settings["depths"]:
            if (other or 0) != depth:
                parts.append(self._endpoint(evidence, "loss_range", other))
        return self.verdict(
            primary.outcome, primary.effect, reason=primary.reason, p_value=primary.p_value, primary=True, parts=parts
        )

    def _endpoint(self, evidence: Evidence, name: str, depth: int) -> Verdict:
        """Judge one endpoint under all three matchings; the parts are the matchings."""
        parts = [self._one(evidence, name, matching, depth) for matching in MATCHINGS]
        outcome, p, decisive = conjunction(parts, 1 - evidence.level)
        said = "; ".join(
            f"{math.exp(part.effect.point):.2f} at {how} ({part.outcome.value})"
            for part, how in zip(parts, MATCHINGS.values(), strict=True)
        )
        reason = f"Without over with batch norm: {said}."
        held = [part.outcome is Outcome.SUPPORTED for part in parts]
        if held == [True, False, False]:
            reason = f"A scale artefact: it holds only where gradients of different length take equal steps. {reason}"
        elif any(held) and not all(held):
            reason = f"It depends on what is taken for an equal step. {reason}"
        title, what = ENDPOINTS[name]
        return self.verdict(
            outcome,
            decisive.effect,
            claim=f"Along the gradient, batch norm gives {what}.",
            endpoint=f"{title}, without over with batch norm, worst of three matchings{_deep(evidence, depth)}",
            p_value=p,
            reason=reason,
            parts=parts,
        )

    def _one(self, evidence: Evidence, name: str, matching: str, depth: int, arm: str = "batch") -> Verdict:
        title, what = ENDPOINTS[name]
        return self._ratio(
            evidence,
            f"{name}@{matching}",
            depth,
            arm,
            claim=f"Along the gradient, {ARMS[arm]} gives {what}.",
            endpoint=f"{title}, without over with {ARMS[arm]}, at {MATCHINGS[matching]}{_deep(evidence, depth)}",
        )

    def _curvature(self, evidence: Evidence, depth: int) -> Verdict:
        return self._ratio(
            evidence,
            "curvature",
            depth,
            "batch",
            claim="Batch norm lowers the curvature along the gradient.",
            endpoint="Curvature along the gradient at distance 0, without over with batch norm",
        )

    def _ratio(self, evidence: Evidence, name: str, depth: int, arm: str, *, claim: str, endpoint: str) -> Verdict:
        plain, normed = (_mean_log(evidence, name, one, depth) for one in ("none", arm))
        return self.part(
            evidence,
            plain - normed,
            scale="log-ratio",
            claim=claim,
            endpoint=endpoint,
            reason=f"{typical(plain, logs=True)} without, {typical(normed, logs=True)} with {ARMS[arm]} "
            "(geometric means).",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the bands of loss, the change of the gradient, beta, the loss, and the range by depth."""
        settings, depth = evidence.settings, evidence.settings["depth"] or 0
        at = evidence.select(probe="landscape", depth=depth)
        common: dict[str, Any] = {"arms": list(ARMS), "labels": {**ARMS, **MATCHINGS}}

        def said(name: str) -> str:
            found = (f"{typical(_mean_log(evidence, name, arm, depth), logs=True)} with {ARMS[arm]}" for arm in ARMS)
            return ", ".join(found)

        ranges = evidence.select(probe="landscape", name="loss_range@same-step", arm=["none", "batch"])
        figures = [
            landscape_band(
                at,
                title="Loss values met along the gradient",
                slug="loss-band",
                matchings=list(MATCHINGS),
                y_title="Loss on the step's batch",
                log=True,
                caption=f"Width of the band in the first 30 % of training, at the same step sizes: "
                f"{said('loss_range@same-step')}; at the same predicted decrease: "
                f"{said('loss_range@predicted-decrease')}.",
                **common,
            ),
            landscape_band(
                at,
                title="How much the gradient changes along itself, relative to its length",
                slug="gradient-band",
                matchings=list(MATCHINGS),
                low=None,
                high="gradient_difference_relative",
                y_title="Largest |g(s) - g| / |g|",
                log=True,
                caption="In the first 30 % of training, at the same step sizes: "
                f"{said('gradient_difference_relative@same-step')}.",
                **common,
            ),
            curves(
                at,
                y="effective_beta@same-step",
                slug="beta",
                title="Effective beta at the same step sizes",
                y_title="Largest |g(s) - g| / |s g|",
                log=True,
                reference={"2 / learning rate": 2 / settings["lr"]},
                caption=f"In the first 30 % of training {said('effective_beta@same-step')}. Most of it is found at the "
                "smallest distances, where activations cross their kinks; the dashed line is 2 / learning rate.",
                **common,
            ),
            curves(
                evidence.select(probe="training", depth=depth),
                y="loss",
                slug="loss",
                title="Training loss",
                y_title="Cross-entropy of the step's batch",
                log=True,
                caption=f"Learning rate {settings['lr']:g}. {evidence.final_losses(ARMS, depth=depth)}",
                **common,
            ),
        ]
        if len(settings["depths"]) > 1:
            by_depth = (
                f"{math.exp(float(np.nanmean(_ratio_at(evidence, other)))):.2g} at {other} layers"
                for other in settings["depths"]
            )
            figures.append(
                curves(
                    ranges.filter(pl.col("step") < WINDOW * settings["steps"]),
                    y="loss_range@same-step",
                    x="depth",
                    slug="range-by-depth",
                    title="Range of the loss at the same step sizes, by depth",
                    x_title="Hidden layers",
                    y_title="Largest minus smallest loss",
                    log=True,
                    caption=f"Without over with batch norm: {', '.join(by_depth)}.",
                    **common,
                )
            )
        return figures

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate every endpoint, matching, arm and depth."""
        return [
            Table(
                "Along the gradient",
                ("Hidden layers", "Quantity", "Matching", *(label.capitalize() for label in ARMS.values())),
                tuple(_rows(evidence)),
                f"Geometric means over the first 30 % of training and {len(evidence.seeds)} seeds.",
            )
        ]


def _mean_log(evidence: Evidence, name: str, arm: str, depth: int) -> np.ndarray:
    """Return the mean logarithm over the window, per seed; values that have none are left out."""
    frame = evidence.select(
        probe="landscape", name=name, arm=arm, depth=depth or 0, before=WINDOW * evidence.settings["steps"]
    )
    return evidence.mean_log(frame)


def _ratio_at(evidence: Evidence, depth: int) -> np.ndarray:
    plain, normed = (_mean_log(evidence, "loss_range@same-step", arm, depth) for arm in ("none", "batch"))
    return plain - normed


def _deep(evidence: Evidence, depth: int) -> str:
    """Say the depth where it is not the main one."""
    return "" if (depth or 0) == (evidence.settings["depth"] or 0) else f", {depth} hidden layers"


def _rows(evidence: Evidence) -> Iterator[tuple[Any, ...]]:
    for depth in evidence.settings["depths"]:
        for name, (title, _) in ENDPOINTS.items():
            for matching, how in MATCHINGS.items():
                values = (
                    typical(_mean_log(evidence, f"{name}@{matching}", arm, depth or 0), logs=True) for arm in ARMS
                )
                yield (depth or "", title, how, *values)
        values = (typical(_mean_log(evidence, "curvature", arm, depth or 0), logs=True) for arm in ARMS)
        yield (depth or "", "Curvature along the gradient", "distance 0", *values)
