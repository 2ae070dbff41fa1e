"""Do gradients explode at initialization, with and without batch norm?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from normscope.plots import Figure, Table, by_depth, versus_theory
from normscope.records import Cell, Record
from normscope.studies import AbstractStudy, Contrast, Evidence, presets
from normscope.studies.case_question import CaseQuestion
from normscope.studies.figures import theory_table
from normscope.studies.lab.chain import growth, theory
from normscope.studies.lab.growth import (
    CHAIN_WORDS,
    CHAINS,
    CLOSER,
    KNOWN,
    RATE,
    ROUNDING,
    STEADY,
    closer_to_one,
    compared_words,
    growth_in_theory,
    growth_words,
    independence_of_scale,
    knows_finite_batches,
    records_of,
    typical_rate,
)

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

SMALL, SCALES = 0.5, (1.5, 2.0)


class ExplodingGradientAtInit(AbstractStudy):
    r"""Batch norm keeps gradients from exploding at initialization.

    ## Claim
    Batch norm helps against exploding gradients, because activations are rescaled (question "What is the effect of
    batch normalization on the gradient?"); Ioffe & Szegedy 2015 conjecture singular values of the layers' Jacobians
    near 1.

    ## Method
    Random chains of wide layers on Gaussian inputs, with a random gradient at the end (Yang et al. 2019, figure 1). The
    growth rate is the factor by which the mean squared gradient at the pre-activations grows per layer toward the
    input, from the slope of its logarithm over the middle layers. The headline compares the growth without a norm and
    with batch norm at He's scale of the weights, with rectifiers at width 1000 and batch 64; a difference of 1.05 per
    layer matters. Also tried: weights 1.5 and 2 times He's, where without a norm the rate is $s^2$ and with batch
    norm it does not depend on s. Claims of their own: at half of He's weights, where gradients vanish without a norm,
    batch norm brings the growth nearer to 1; the gradient keeps its size (within 1.05) with batch norm, for rectifiers,
    tanh, GELU, no activation, beta, gamma, statistics taken for constants, orthogonal weights, skips; the rates are
    those of theory, within 2 % (5 % where theory is for infinite batches alone).

    ## Prediction
    It depends on the initial scale. For well-scaled plain networks batch norm makes gradients explode:
    $\pi/(\pi-1) = 1.467$ per layer for large batches, where the plain network stays at 1. Against badly scaled
    weights it helps: 2.25 without norm at s = 1.5.

    ## Threats
    One step of a random network says nothing of training, in which rates change at once (see
    exploding-gradient-in-training). Theory is for infinite width: at width 300 rates lie about half a percent below.
    """

    CODE = "exploding-gradient-at-init"
    CARD = 6
    TOPIC = "gradient"
    READS_DATA = False
    SOURCES = (
        "Q&A on the gradient, question",
        "Note on batch norm (2020), section 2",
        "Yang et al. 2019 (arXiv:1902.08129), theorems 7 to 9, figure 1",
        "Luther 2020, blog on exploding gradients",
    )
    CLAIM = "At initialization batch norm keeps gradients from exploding toward the input."
    ON_A_CASE = CaseQuestion("gradients", differs="a gradient that vanishes counts as one that explodes")
    ENDPOINT = "Growth of the squared gradient per layer, without over with batch norm, rectifiers, batches of 64"
    MARGIN = math.log(STEADY)
    MARGIN_REASON = "1.05 per layer is a factor of three over the 24 layers"
    ARMS = CHAIN_WORDS
    CONDITIONS = {"scale": "initial weights {:g} times He's"}
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
        for scale in (SMALL, *SCALES):
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
        yield from records_of(cell, squares)

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the growth at He's scale; larger weights are also tried; small ones, other chains, theory."""
        judged = evidence.settings["judged"]
        for scale in (1.0, *SCALES):
            where: dict[str, Any] = {"batch": judged, "scale": scale}
            plain, normed = (typical_rate(evidence, arm=arm, **where) for arm in ("none", "batch"))
            yield Contrast(
                RATE,
                "none",
                "batch",
                at=where,
                scale="log-ratio",
                unit="per layer",
                name=f"scale {scale:g}",
                says=f"per layer toward the input the squared gradient {growth_words(plain)} without a norm and "
                f"{growth_words(normed)} with batch norm, {{effect}}",
                comparative=("less", "more"),
            )
        yield self._vanishing(evidence)
        yield Contrast(
            independence_of_scale([SMALL, *SCALES]),
            "batch",
            at={"batch": judged},
            exact_within=ROUNDING,
            name="any scale",
            claim="With batch norm the growth does not depend on the scale of the initial weights.",
            says=f"the growth is the same at {SMALL:g} to {SCALES[-1]:g} times He's scale ({{effect}})",
        )
        yield from self._steady(evidence)
        yield from self._theory(evidence)

    def _vanishing(self, evidence: Evidence) -> Contrast:
        """Return the contrast at small weights, where gradients vanish without a norm."""
        at: dict[str, Any] = {"batch": evidence.settings["judged"], "scale": SMALL}
        return Contrast(
            RATE,
            "none",
            "batch",
            at=at,
            scale="log-ratio",
            effect=closer_to_one,
            name=f"scale {SMALL:g}",
            claim="At initialization batch norm keeps gradients from vanishing toward the input.",
            endpoint=f"How much nearer to 1 the growth per layer is with batch norm, weights {SMALL:g} times He's",
            says=compared_words(*(typical_rate(evidence, arm=arm, **at) for arm in ("none", "batch"))),
            comparative=CLOSER,
        )

    def _steady(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield whether gradients keep their size in every chain with batch norm."""
        for arm in self.ARMS:
            if arm != "none":
                yield Contrast(
                    RATE,
                    arm,
                    1.0,
                    at=_judged(evidence),
                    scale="log-ratio",
                    unit="per layer",
                    equal_within=self.MARGIN,
                    labels=("", "no growth"),
                    name=f"steady, {arm}",
                    claim="With batch norm the squared gradient keeps its size from layer to layer.",
                    says=f"the squared gradient changes by {{effect}} toward the input with {self.ARMS[arm]}",
                )

    def _theory(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield measured growth against theory."""
        for arm, batch in _with_theory(evidence):
            measured, expected = typical_rate(evidence, arm=arm, batch=batch, scale=1.0), growth_in_theory(arm, batch)
            yield Contrast(
                RATE,
                arm,
                expected,
                at={"batch": batch, "scale": 1.0},
                scale="log-ratio",
                equal_within=math.log(1.02 if knows_finite_batches(arm) else 1.05),
                margin_reason="a finite width makes half a percent"
                + ("" if knows_finite_batches(arm) else ", and theory for infinite batches misses one over the batch"),
                labels=("", "theory"),
                name=f"theory, {arm}, {batch}",
                claim="The growth rate is that of theory.",
                endpoint=f"Measured over theoretical growth, {arm}, batches of {batch}",
                says=f"the growth with {self.ARMS[arm]} is {{effect}} that of theory",
                reason=f"{measured:.4f} measured, {expected:.4f} in theory: ratio {measured / expected:.4f}.",
            )

    def here(self, evidence: Evidence) -> str:
        """Say which chains the numbers are about; no data is used."""
        return f"random chains of {evidence.settings['depth']} dense layers, Gaussian inputs"

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
        return [
            theory_table(
                (
                    f"growth, {arm}, B={batch}",
                    RATE(evidence, arm=arm, batch=batch, scale=1.0),
                    growth_in_theory(arm, batch),
                )
                for arm, batch in _with_theory(evidence)
            ),
            self.grid_table(
                RATE,
                evidence,
                rows={"scale": [1.0, SMALL, *SCALES]},
                columns={"arm": ["none", "batch"]},
                at={"batch": evidence.settings["judged"]},
                title="Badly scaled weights",
                heads={"scale": "Times He's"},
            ),
        ]


def _judged(evidence: Evidence) -> dict[str, Any]:
    return {"batch": evidence.settings["judged"], "scale": 1.0}


def _with_theory(evidence: Evidence) -> list[tuple[str, int]]:
    judged = evidence.settings["judged"]
    others = [(arm, batch) for arm in ("batch", "linear") for batch in evidence.settings["batches"] if batch != judged]
    return [(arm, judged) for arm in KNOWN] + others
