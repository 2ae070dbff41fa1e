"""The loss along the gradient: is it smoother with batch norm?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from normscope.plots import Figure, Table, landscape_band
from normscope.probes.landscape import LandscapeAlongGradient
from normscope.records import Cell
from normscope.studies import AbstractTraining, Arm, Contrast, Evidence, Quantity, mean_log, presets
from normscope.studies.case_question import CaseQuestion
from normscope.studies.lab import norms

MATCHINGS = {
    "same-step": "the same step sizes",
    "relative-step": "the same relative steps",
    "predicted-decrease": "the same predicted decrease",
}
SMALLER = ("smaller", "larger")
ENDPOINTS = {
    "loss_range": ("range of the loss along the gradient", "a narrower range of losses", ("narrower", "wider")),
    "gradient_difference": ("largest change of the gradient", "a smaller change of the gradient", SMALLER),
    "gradient_difference_relative": (
        "largest change of the gradient relative to its length",
        "a smaller relative change of the gradient",
        SMALLER,
    ),
    "effective_beta": ("effective beta", "a smaller effective beta", SMALLER),
}
WINDOW = 0.3


class LandscapeSmoothness(AbstractTraining):
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
    $g^\top H g / g^\top g$ at distance 0. The headline compares them as the source does, at the same step sizes
    (1/2 to 4 times the learning rate). Networks whose gradients differ in scale may be compared in other ways; also
    tried are the same steps relative to the weights, and the same predicted decrease of the loss, which makes the
    step differ between the arms by construction. The effect is the log-ratio of the network without to that with batch
    norm, averaged over the first 30 % of training. Also tried: noisy batch norm, shallower and deeper networks.

    ## Prediction
    (a) and (b) hold for deep plain networks at the same step sizes; (c) not to be told apart at the same learning rate,
    since beta settles near 2 / learning rate in every arm; the opposite in shallow networks with He initialisation.

    ## Threats
    Three matchings are three questions, and the source asked one of them. The line along one gradient is
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
    ON_A_CASE = CaseQuestion("smoothness")
    ENDPOINT = "Range of the loss along the gradient at the same step sizes, without over with batch norm"
    MARGIN = math.log(1.5)
    MARGIN_REASON = "the source's figure shows bands that differ several times; half as wide again is not seen"
    CONDITIONS = {"depth": "{} hidden layers"}
    ARMS = {
        "none": Arm("no batch norm", norms.none()),
        "batch": Arm("batch norm", norms.batch()),
        "noisy": Arm("noisy batch norm", norms.batch()),
    }
    PRESETS = presets(
        quick={
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
        vgg={"network": {"name": "vgg-a", "width": 16}, "depth": None, "depths": [None], "steps": 300},
        full={
            "network": {"name": "vgg-a"},
            "depth": None,
            "depths": [None],
            "steps": 15000,
            "every": 50,
            "points": 8,
            "dense": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3],
            "train": None,
            "test": None,
        },
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every arm at the main depth, those without noise at the others."""
        for depth in settings["depths"]:
            for arm in self.ARMS:
                if arm != "noisy" or depth == settings["depth"]:
                    yield arm, {"depth": depth or 0}

    def norm(self, cell: Cell) -> norms.Factory:
        """Return the arm's norm; the noise is of the cell's seed."""
        return norms.noisy_batch(cell.seed) if cell.arm == "noisy" else super().norm(cell)

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return the point's depth, if the network has one."""
        return {"depth": int(cell.point["depth"])} if cell.point["depth"] else {}

    def options(self, cell: Cell) -> dict[str, Any]:
        """Walk along the gradients; other depths than the main one are only compared over the window and end there."""
        settings = cell.settings
        until = math.ceil(WINDOW * settings["steps"])
        main = cell.point["depth"] == (settings["depth"] or 0)
        return {
            "steps": settings["steps"] if main else until,
            "probes": [LandscapeAlongGradient(points=settings["points"], dense=settings["dense"])],
            "every": settings["every"],
            "probe_until": 2 * until if main else until,
        }

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the range of the loss at the source's matching; other matchings, depths and noise are also tried."""
        main, depths = evidence.settings["depth"], evidence.settings["depths"]
        for name in ENDPOINTS:
            for matching in MATCHINGS:
                yield self._contrast(evidence, name, matching)
        for depth in depths:
            if depth != main:
                for matching in MATCHINGS:
                    yield self._contrast(evidence, "loss_range", matching, depth)
        yield self._contrast(evidence, "loss_range", "same-step", arm="noisy")
        yield Contrast(
            _quantity(evidence, "curvature", "curvature along the gradient at distance 0"),
            "none",
            "batch",
            at={"depth": main or 0},
            scale="log-ratio",
            claim="Batch norm lowers the curvature along the gradient.",
            name="curvature",
            says="with batch norm the curvature along the gradient is {effect}",
            comparative=SMALLER,
        )

    def _contrast(
        self, evidence: Evidence, name: str, matching: str, depth: int | None = None, arm: str = "batch"
    ) -> Contrast:
        words, what, comparative = ENDPOINTS[name]
        main = evidence.settings["depth"]
        other = "" if depth in (None, main) else f", {depth} layers"
        other += "" if arm == "batch" else f", {arm}"
        return Contrast(
            _quantity(evidence, f"{name}@{matching}", f"{words} at {MATCHINGS[matching]}"),
            "none",
            arm,
            at={"depth": depth or main or 0},
            conditions={"matching": MATCHINGS[matching]},
            scale="log-ratio",
            claim=f"Along the gradient, {self.ARMS[arm].words} gives {what}.",
            name=f"{name}@{matching}{other}",
            says=f"the {words} is {{effect}} with {self.ARMS[arm].words}",
            comparative=comparative,
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the bands of loss, the change of the gradient, beta, the loss, and the range by depth."""
        settings, depth = evidence.settings, evidence.settings["depth"] or 0
        common: dict[str, Any] = {"log": True, "matchings": list(MATCHINGS), "arms": list(self.ARMS)}
        common["labels"] = {**self.wording.arms, **MATCHINGS}

        def said(name: str) -> str:
            quantity = _quantity(evidence, name)
            return ", ".join(
                f"{quantity.text(evidence, arm=arm, depth=depth)} with {words}" for arm, words in self.ARMS.items()
            )

        begin = "In the first 30 % of training, at the same step sizes"
        figures = [
            landscape_band(
                evidence.select(probe="landscape", depth=depth),
                title="Loss values met along the gradient",
                slug="loss-band",
                y_title="Loss on the step's batch",
                caption=f"Width of the band in the first 30 % of training, at the same step sizes: "
                f"{said('loss_range@same-step')}; at the same predicted decrease: "
                f"{said('loss_range@predicted-decrease')}.",
                **common,
            ),
            landscape_band(
                evidence.select(probe="landscape", depth=depth),
                title="How much the gradient changes along itself, relative to its length",
                slug="gradient-band",
                low=None,
                high="gradient_difference_relative",
                y_title="Largest |g(s) - g| / |g|",
                caption=f"{begin}: {said('gradient_difference_relative@same-step')}.",
                **common,
            ),
            self.curves(
                evidence,
                "effective_beta@same-step",
                probe="landscape",
                at={"depth": depth},
                slug="beta",
                title="Effective beta at the same step sizes",
                y_title="Largest |g(s) - g| / |s g|",
                log=True,
                reference={"2 / learning rate": 2 / settings["lr"]},
                caption=f"{begin}: {said('effective_beta@same-step')}. Most of it is found at the smallest distances, "
                "where activations cross their kinks; the dashed line is 2 / learning rate.",
            ),
            self.curves(evidence, "loss", at={"depth": depth}, slug="loss", title="Training loss"),
        ]
        if len(settings["depths"]) > 1:
            ratios = {at: self._contrast(evidence, "loss_range", "same-step", at) for at in settings["depths"]}
            points = {at: math.exp(contrast.read(evidence).effect.point) for at, contrast in ratios.items()}
            figures.append(
                self.curves(
                    evidence,
                    "loss_range@same-step",
                    probe="landscape",
                    at={"arm": ["none", "batch"], "before": WINDOW * settings["steps"]},
                    x="depth",
                    slug="range-by-depth",
                    title="Range of the loss at the same step sizes, by depth",
                    x_title="Hidden layers",
                    log=True,
                    caption="Without over with batch norm: "
                    + ", ".join(f"{ratio:.2g} at {at} layers" for at, ratio in points.items())
                    + ".",
                )
            )
        return figures

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate every endpoint, matching, arm and depth."""
        quantities = [
            _quantity(evidence, f"{name}@{matching}", f"{words}, {how}")
            for name, (words, *_) in ENDPOINTS.items()
            for matching, how in MATCHINGS.items()
        ]
        quantities.append(_quantity(evidence, "curvature", "curvature along the gradient, distance 0"))
        return [
            self.grid_table(
                quantities,
                evidence,
                rows={"depth": [depth or 0 for depth in evidence.settings["depths"]]},
                columns={"arm": list(self.ARMS)},
                title="Along the gradient",
                caption=f"Geometric means over the first 30 % of training and {len(evidence.seeds)} seeds.",
            )
        ]


def _quantity(evidence: Evidence, name: str, words: str = "") -> Quantity:
    """Return the mean logarithm over the window; values that have none are left out."""
    return mean_log(name, words, probe="landscape", before=WINDOW * evidence.settings["steps"])
