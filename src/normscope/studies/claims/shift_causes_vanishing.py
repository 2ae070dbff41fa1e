"""Does covariate shift make gradients vanish or explode?"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from torch import nn

from normscope.plots import Figure, Table, by_depth
from normscope.records import Cell, Record
from normscope.stats import slope_per_seed
from normscope.studies import AbstractTraining, Contrast, Evidence, Quantity, accuracy, mean_log, presets
from normscope.studies.evidence import Floats
from normscope.studies.lab.arms import Noted, batch_norm, noted, recorder
from normscope.studies.lab.meters import AbstractMeter, ChannelShift
from normscope.studies.lab.models import Place
from normscope.studies.lab.norms import Factory
from normscope.studies.lab.shift import Shift, root_mean_square
from normscope.studies.lab.streams import generator

WORDS = {"relu": "rectifiers", "tanh": "tanh"}


class ShiftCausesVanishing(AbstractTraining):
    r"""Covariate shift makes gradients vanish or explode.

    ## Claim
    Layers adjust to the shift of their inputs, "often causing vanishing or explosion of gradients" (article on batch
    norm, experiment 2).

    ## Method
    Dense networks of 10 hidden layers of 64 without a norm, rectifiers with He's weights and tanh, 100 steps of SGD.
    The shift is dosed: at every step each unit's input of its activation is multiplied by $\sqrt{1+\delta u}$, which is
    1 in the mean square, and moved by $\delta z$ of its standard deviations, with u uniform between -1 and 1 and z
    standard normal, the same for all samples and new at every step. The gradient's distance from an even one is the
    size of the logarithm of its root mean square at the first hidden layer over that at the last, as a mean over steps:
    a gradient that shrinks to a third and a gradient that grows three times are equally far. The headline is that
    distance at dose 1 against none, rectifiers; one and a half times matters. It says something only if the shift moves
    the units' means at least twice as far from step to step as training without it does. Also tried: doses .2 and .5,
    tanh. Claims of their own: it is the change that does it: more than the same distortion drawn once and kept; the
    distance grows with the dose (slope on it); batch norm behind the shift takes it out, for it is the same for all
    samples of a batch.

    ## Prediction
    With rectifiers nothing much happens: a shift and a factor of mean square 1 leave the mean squared gradient alone,
    and half of the units stay active. With tanh the shift saturates units, and gradients vanish at dose 1. A kept
    distortion does so too, but training adapts to it. Batch norm takes out whatever all samples share.

    ## Threats
    A shift that is put in at random is not the shift that training makes, to which the sentence refers: it is not
    correlated with the gradient. Dose 1 is far more than training makes: it was taken after a pilot in which smaller
    doses did little, and two other factors were tried there, one of heavy tails and one that flips signs, which batch
    norm does not take out. What layers do in reaction over many steps may take longer than 100. Gradients are those of
    the activations' inputs, before the update. Accuracy is evaluated without the shift.
    """

    CODE = "shift-causes-vanishing"
    CARD = 48
    TOPIC = "covariate shift"
    SOURCES = ("Article on batch norm, experiment 2", "Ioffe & Szegedy 2015 (arXiv:1502.03167), section 1")
    CLAIM = "Covariate shift makes gradients vanish or explode."
    ON_A_CASE = "no arm plants a shift"
    ENDPOINT = "How far the gradient at the first layer is from that at the last, at dose 1 against none, rectifiers"
    MARGIN = math.log(1.5)
    MARGIN_REASON = "one and a half times over ten layers is less than what an ordinary draw of the weights makes"
    ARMS = {
        "moving": "shift at every step",
        "fixed": "shift drawn once",
        "batch": "batch norm behind the shift",
    }
    POINTS = {"activation": "activations", "dose": "doses"}
    CONDITIONS = {"activation": "", "dose": "dose {:g}"}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 10, "width": 64},
            "activations": ["relu", "tanh"],
            "doses": [0.0, 0.2, 0.5, 1.0],
            "batch": 64,
            "lr": 0.03,
            "steps": 100,
            "every": 5,
            "train": None,
            "test": None,
        },
        full={"network": {"name": "mlp", "depth": 20, "width": 256}, "batch": 128, "steps": 2000},
    )

    def norm(self, cell: Cell) -> Factory:
        """Return the shift of the cell's dose, with batch norm behind it where the arm has it."""
        dose, kept = float(cell.point["dose"]), cell.arm == "fixed"

        def make(place: Place) -> nn.Module:
            shift = Shift(place.features, dose, kept=kept, source=generator(cell.seed, f"shift:{place.index}"))
            return nn.Sequential(shift, batch_norm(eps=1e-12)(place)) if cell.arm == "batch" else shift

        return noted(make)

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return the point's activation, with weights of the scale that suits it."""
        name = str(cell.point["activation"])
        return {"activation": name, "gain": 2.0 if name == "relu" else 1.0}

    def meters(self, cell: Cell) -> Sequence[AbstractMeter]:
        """Read how far the inputs of the first, middle and last activations move from step to step."""
        depth = int(cell.settings["network"]["depth"])
        sites = [f"blocks.{index}.norm" for index in sorted({0, depth // 2, depth - 1})]
        return (ChannelShift(sites, every=int(cell.settings["every"])),)

    def options(self, cell: Cell) -> dict[str, Any]:
        """Read the gradient at the input of every activation."""
        record, every = recorder(cell, "gradients"), int(cell.settings["every"])
        ends = (0, (int(cell.settings["steps"]) - 1) // every * every)

        def watch(step: int, net: nn.Module) -> Iterator[Record]:
            if step % every:
                return
            sizes = [root_mean_square(cast(Noted, block.norm).output) for block in cast(Any, net).blocks]
            tiny = torch.finfo(torch.float64).tiny
            yield record("ratio", max(sizes[0], tiny) / max(sizes[-1], tiny), step)
            for index, size in enumerate(sizes if step in ends else ()):
                yield record("by_layer", max(size, tiny) / max(sizes[-1], tiny), step, site=f"blocks.{index}")

        return {"watch": watch}

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield doses against none; change against distortion, the slope, and batch norm are claims of their own."""
        doses = sorted(evidence.settings["doses"], reverse=True)
        activations = evidence.settings["activations"]
        none = doses[-1]
        for activation in activations:
            for dose in doses[:-1]:
                moves = Contrast(
                    MOVED,
                    {"arm": "moving", "dose": dose},
                    {"arm": "moving", "dose": none},
                    at={"activation": activation},
                    scale="log-ratio",
                    margin=math.log(2),
                    margin_reason="a shift that is smaller than what training itself makes is no dose",
                    claim="The shift moves the means of units at least twice as far as training does.",
                    says="means of units move {effect} as far from step to step as without the shift",
                )
                yield Contrast(
                    DISTANCE,
                    {"arm": "moving", "dose": dose},
                    {"arm": "moving", "dose": none},
                    at={"activation": activation},
                    conditions={"activation": WORDS[activation]},
                    scale="log-ratio",
                    labels=(f"dose {dose:g}", "no shift"),
                    name=f"{activation}, dose {dose:g}",
                    says="gradients at the first and the last layer are {effect} apart with a shift of dose "
                    f"{dose:g}: {self._first(evidence, activation, dose)} times the last one's at the first layer, "
                    f"and {self._first(evidence, activation, none)} times without the shift",
                    comparative=("further", "less far"),
                    premises=(moves,),
                )
        yield from self._reasons(evidence)

    def _reasons(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield what it is in the shift that does it, and what batch norm does to it: claims of their own."""
        doses, activations = evidence.settings["doses"], evidence.settings["activations"]
        for activation in activations:
            yield Contrast(
                DISTANCE,
                "moving",
                "fixed",
                at={"activation": activation, "dose": max(doses)},
                conditions={"activation": WORDS[activation]},
                scale="log-ratio",
                name=f"change, {activation}",
                claim="It is the change from step to step that takes gradients apart, not the distortion itself.",
                says="gradients at the first and the last layer are {effect} apart if the shift changes at every step",
                comparative=("further", "less far"),
            )
        for activation in activations:
            yield Contrast(
                SLOPE,
                "moving",
                at={"activation": activation},
                conditions={"activation": WORDS[activation]},
                scale="log-ratio",
                name=f"slope, {activation}",
                claim="The more shift, the further apart are the gradients.",
                says="with each unit of dose gradients are {effect} apart",
                comparative=("further", "less far"),
            )
        for activation in activations:
            yield Contrast(
                DISTANCE,
                {"arm": "batch", "dose": max(doses)},
                {"arm": "batch", "dose": min(doses)},
                at={"activation": activation},
                conditions={"activation": WORDS[activation]},
                scale="log-ratio",
                equal_within=math.log(1.05),
                margin_reason="a twentieth is what other batches make",
                labels=(f"dose {max(doses):g}", "no shift"),
                name=f"batch norm, {activation}",
                claim="Batch norm behind the shift takes it out.",
                says="with batch norm gradients are {effect} apart with the shift than without",
                comparative=("further", "less far"),
            )

    @staticmethod
    def _first(evidence: Evidence, activation: str, dose: float) -> str:
        """Write the gradient at the first layer over that at the last, where the shift changes at every step."""
        return SIGNED.text(evidence, arm="moving", activation=activation, dose=dose)

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the gradient by layer with and without the shift."""
        return [
            by_depth(
                evidence.select(
                    probe="gradients", name="by_layer", activation=activation, dose=max(evidence.settings["doses"])
                ),
                y="by_layer",
                slug=f"by-layer-{activation}",
                title=f"Gradient at each layer over that at the last, {WORDS[activation]}, "
                f"dose {max(evidence.settings['doses']):g}",
                y_title="Root mean square, last layer 1",
                arms=list(self.ARMS),
                labels=self.ARMS,
                caption="Without a shift the first layer has "
                f"{self._first(evidence, activation, min(evidence.settings['doses']))} times the gradient of the last, "
                f"with it {self._first(evidence, activation, max(evidence.settings['doses']))}.",
            )
            for activation in evidence.settings["activations"]
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the gradient by dose."""
        return [
            self.grid_table(
                [SIGNED, DISTANCE, MOVED, accuracy()],
                evidence,
                rows={key: evidence.settings[name] for key, name in self.POINTS.items()} | {"arm": list(self.ARMS)},
                title="Gradients by dose of the shift",
                heads={"dose": "Dose"},
                labels=WORDS,
            )
        ]


def _distance(evidence: Evidence, **where: Any) -> Floats:
    chosen = evidence.select(probe="gradients", name="ratio", **where)
    return evidence.per_seed(chosen, pl.col("value").log().abs().mean())


def _slope(evidence: Evidence, **where: Any) -> Floats:
    """Return per seed the slope of the distance on the dose; NaN for a seed that lacks a dose."""
    doses = evidence.settings["doses"]
    values = np.array([_distance(evidence, dose=dose, **where) for dose in doses]).T
    slopes, whole = np.full(len(values), np.nan), np.isfinite(values).all(1)
    if whole.any():
        slopes[whole] = slope_per_seed(doses, values[whole])
    return slopes


DISTANCE = Quantity("distance of the first layer's gradient from the last one's", _distance, logs=True)
SLOPE = Quantity("slope of that distance on the dose", _slope, logs=True)
SIGNED = mean_log("ratio", "gradient at the first layer over that at the last", probe="gradients")
MOVED = mean_log(
    "relative_mean_shift", "change of a unit's mean from step to step, in deviations", probe="channel_shift"
)
