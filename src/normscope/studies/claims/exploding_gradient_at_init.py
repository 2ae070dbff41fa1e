"""Do gradients explode at initialization, with and without batch norm?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from normscope.plots import Figure, Table, by_depth, versus_theory
from normscope.records import Cell, Record
from normscope.studies import AbstractStudy, Contrast, Evidence, mean, presets
from normscope.studies.lab.arms import recorder
from normscope.studies.lab.chain import growth, rate, theory

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

#: Options of the chain of each arm.
CHAINS: dict[str, dict[str, Any]] = {
    "none": {"norm": False},
    "batch": {},
    "tanh": {"activation": "tanh"},
    "gelu": {"activation": "gelu"},
    "linear": {"activation": "linear"},
    "beta 0.5": {"shift": 0.5},
    "beta 1": {"shift": 1.0},
    "beta 2": {"shift": 2.0},
    "tanh, gamma 0.5": {"activation": "tanh", "gain": 0.5},
    "tanh, gamma 2": {"activation": "tanh", "gain": 2.0},
    "detached": {"detached": True},
    "orthogonal": {"orthogonal": True, "activation": "linear"},
    "residual": {"residual": True},
}
#: Chains whose rate is known in theory.
KNOWN = ("none", "batch", "linear", "tanh", "gelu", "beta 1", "beta 2", "tanh, gamma 0.5", "tanh, gamma 2")
SCALES = (0.5, 1.5, 2.0)
RATE = mean("rate", "growth of the squared gradient per layer", probe="chain")


class ExplodingGradientAtInit(AbstractStudy):
    r"""Batch norm keeps gradients from exploding at initialization.

    ## Claim
    Batch norm helps against exploding gradients, because activations are rescaled (question "What is the effect of
    batch normalization on the gradient?"); Ioffe & Szegedy 2015 conjecture singular values of the layers' Jacobians
    near 1.

    ## Method
    Random chains of wide layers on Gaussian inputs, with a random gradient at the end (Yang et al. 2019, figure 1). The
    growth rate is the factor by which the mean squared gradient at the pre-activations grows per layer toward the
    input, from the slope of its logarithm over the middle layers. The primary endpoint is the rate with batch norm and
    rectifiers at width 1000 and batch 64: that batch norm prevents explosion is supported if the interval lies below
    1.02, refuted if above 1.05. Parts: batches of 8 to 256, tanh, GELU, no activation, beta, gamma, statistics taken
    for constants, orthogonal weights, skips; each against theory where there is one (within 2 %). And the other
    question: weights s times He's, where without norm the rate is :math:`s^2` and with batch norm it does not depend
    on s.

    ## Prediction
    Refuted for well-scaled plain networks: :math:`\pi/(\pi-1) = 1.467` per layer for large batches, where the plain
    network stays at 1. Supported against badly scaled weights: 2.25 without norm at s = 1.5.

    ## Threats
    One step of a random network says nothing of training, in which rates change at once (see
    exploding-gradient-in-training). Theory is for infinite width: at width 300 rates lie about half a percent below.
    """

    CODE = "exploding-gradient-at-init"
    CARD = 6
    TOPIC = "gradient"
    SOURCES = (
        "Q&A on the gradient, question",
        "Note on batch norm (2020), section 2",
        "Yang et al. 2019 (arXiv:1902.08129), theorems 7 to 9, figure 1",
        "Luther 2020, blog on exploding gradients",
    )
    CLAIM = "At initialization batch norm keeps gradients from exploding toward the input."
    ENDPOINT = "One over the growth of the squared gradient per layer, rectifiers with batch norm, batches of 64"
    MARGIN = -math.log(1.02)
    ARMS = {arm: {"none": "no norm", "batch": "batch norm"}.get(arm, arm) for arm in CHAINS}
    CONDITIONS = {"scale": "weights {:g} times He's"}
    PRESETS = presets(
        quick={"width": 1000, "narrow": 300, "depth": 24, "batches": [8, 16, 64, 256], "judged": 64},
        full={"narrow": 1000, "depth": 50, "batches": [4, 8, 16, 64, 256, 1000]},
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every arm at the judged batch, the two main ones at all batches, and the badly scaled ones."""
        for arm in self.ARMS:
            yield arm, {"batch": settings["judged"], "scale": 1.0}
        for batch in settings["batches"]:
            if batch != settings["judged"]:
                yield "batch", {"batch": batch, "scale": 1.0}
                yield "linear", {"batch": batch, "scale": 1.0}
        for scale in SCALES:
            for arm in ("none", "batch"):
                yield arm, {"batch": settings["judged"], "scale": scale}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Run one random chain."""
        settings, batch, scale = cell.settings, int(cell.point["batch"]), float(cell.point["scale"])
        wide = cell.arm in ("none", "batch", "linear") and scale == 1.0
        squares = growth(
            cell.seed,
            width=settings["width"] if wide else settings["narrow"],
            depth=settings["depth"],
            batch=batch,
            scale=scale,
            **CHAINS[cell.arm],
        )
        record = recorder(cell, "chain")
        yield record("rate", rate(squares))
        for index, value in enumerate(squares):
            yield record("squared_gradient", value / squares[-1], site=f"layer.{index}")

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the rate with batch norm; theory, variants and badly scaled weights are parts."""
        judged = evidence.settings["judged"]
        plain, larger, normed = (
            RATE.text(evidence, arm=arm, batch=judged, scale=scale)
            for arm, scale in (("none", 1.0), ("none", 1.5), ("batch", 1.5))
        )
        yield _prevents(
            evidence,
            "batch",
            f" Without norm it grows by {plain}. With weights 1.5 times as large it grows by {larger} without norm and "
            f"by {normed} with it: there batch norm does prevent explosion.",
        )
        for arm, batch in _with_theory(evidence):
            measured, expected = RATE(evidence, arm=arm, batch=batch, scale=1.0).mean(), growth_in_theory(arm, batch)
            yield Contrast(
                RATE,
                arm,
                expected,
                at={"batch": batch, "scale": 1.0},
                scale="log-ratio",
                equal_within=math.log(1.02),
                claim="The growth rate is that of theory.",
                endpoint=f"Measured over theoretical growth, {arm}, batches of {batch}",
                reason=f"{measured:.4f} measured, {expected:.4f} in theory: ratio {measured / expected:.4f}.",
            )
        for arm in self.ARMS:
            if arm not in ("batch", "none"):
                yield _prevents(evidence, arm)
        for scale in SCALES:
            if scale > 1:
                yield Contrast(
                    RATE,
                    "none",
                    "batch",
                    at={"batch": judged, "scale": scale},
                    scale="log-ratio",
                    margin=math.log(1.05),
                    claim=f"With weights {scale:g} times He's gradients grow less with batch norm than without.",
                )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the squared gradient by depth, and the rate by batch against theory."""
        at, batches = _judged(evidence), sorted(evidence.settings["batches"])
        said = {arm: RATE.text(evidence, arm=arm, **at) for arm in ("batch", "none", "tanh")}
        measured = [
            {"batch": float(batch), "seed": seed, "value": value, "network": words}
            for arm, words in (("batch", "rectifiers"), ("linear", "linear"))
            for batch in batches
            for seed, value in zip(evidence.seeds, RATE(evidence, arm=arm, batch=batch, scale=1.0), strict=True)
        ]
        lines = [
            {"batch": float(batch), "value": theory(name, batch), "network": words}
            for name, words in (("relu", "rectifiers"), ("linear", "linear"))
            for batch in np.geomspace(batches[0], batches[-1], 60)
        ]
        return [
            by_depth(
                evidence.select(
                    probe="chain", name="squared_gradient", arm=["none", "batch", "tanh", "residual"], **at
                ),
                y="squared_gradient",
                slug="by-depth",
                title="Squared gradient at each layer, over that of the last",
                y_title="Mean squared gradient, last layer 1",
                arms=list(self.ARMS),
                labels=self.ARMS,
                caption=f"Per layer {said['batch']} with batch norm and rectifiers, {said['none']} without norm, "
                f"{said['tanh']} with batch norm and tanh.",
            ),
            versus_theory(
                pl.DataFrame(measured),
                pl.DataFrame(lines),
                x="batch",
                by="network",
                slug="by-batch",
                title="Growth per layer by batch size, against theory",
                x_title="Batch size",
                y_title="Growth of the squared gradient per layer",
                log_x=True,
                caption="Lines are Yang et al. 2019, theorem 8, and (B-2)/(B-3) for linear networks.",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate measured and theoretical rates."""
        rows = []
        for arm, batch in _with_theory(evidence):
            found, expected = (
                float(np.mean(RATE(evidence, arm=arm, batch=batch, scale=1.0))),
                growth_in_theory(arm, batch),
            )
            rows.append((f"growth, {arm}, B={batch}", f"{found:.4f}", f"{expected:.4f}", f"{found / expected:.4f}"))
        return [
            Table("Against theory", ("Quantity", "Measured", "Theory", "Ratio"), tuple(rows), "Means over seeds."),
            self.grid_table(
                RATE,
                evidence,
                rows={"scale": [1.0, *SCALES]},
                columns={"arm": ["none", "batch"]},
                at={"batch": evidence.settings["judged"]},
                title="Badly scaled weights",
                heads={"scale": "Times He's"},
            ),
        ]


def _judged(evidence: Evidence) -> dict[str, Any]:
    return {"batch": evidence.settings["judged"], "scale": 1.0}


def _prevents(evidence: Evidence, arm: str, beside: str = "") -> Contrast:
    """Return the contrast of no growth with that of an arm; ``beside`` is added to its sentence."""
    at = _judged(evidence)
    grows = f"The squared gradient grows by {RATE.text(evidence, arm=arm, **at)} per layer toward the input."
    return Contrast(
        RATE,
        1.0,
        arm,
        at=at,
        scale="log-ratio",
        refuted_below=-math.log(1.05),
        labels=("no growth", ""),
        reason=f"{grows}{beside}",
    )


def growth_in_theory(arm: str, batch: int) -> float:
    """Return by how much the gradient grows a layer at initialization; without batch norm at He's scale it does not."""
    if arm == "none":
        return 1.0
    options = CHAINS[arm]
    name = options.get("activation", "relu")
    finite = batch if name in ("relu", "linear") and not options.get("shift") else None
    return theory(name, finite, gain=options.get("gain", 1.0), shift=options.get("shift", 0.0))


def _with_theory(evidence: Evidence) -> list[tuple[str, int]]:
    judged = evidence.settings["judged"]
    others = [(arm, batch) for arm in ("batch", "linear") for batch in evidence.settings["batches"] if batch != judged]
    return [(arm, judged) for arm in KNOWN] + others
