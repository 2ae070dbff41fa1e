"""Does batch norm gain anything at a small learning rate?"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from normscope.builders import residual_cnn, residual_mlp
from normscope.plots import Figure, Table
from normscope.records import Cell
from normscope.studies import AbstractTraining, Best, Contrast, Evidence, Quantity, accuracy, final, presets
from normscope.studies.evidence import Floats
from normscope.studies.figures import by_rate_figure
from normscope.studies.lab.data import Dataset
from normscope.studies.lab.streams import stream

IMAGES = "a point is three of the 300 test images"


class SmallRateNoGain(AbstractTraining):
    r"""At a small learning rate batch norm gains nothing.

    ## Claim
    Batch norm "primarily enables training with larger learning rates, which is the cause for faster convergence and
    better generalization" (Bjorck et al. 2018, abstract). So a residual network without it, at the small rate that it
    needs, is as good as the network with batch norm at that rate: 82 against 81.3 % on CIFAR-10 at a rate of .0001,
    where batch norm at .1 has 93.2 % (their figures, second hand).

    ## Method
    Fully connected residual networks of 6 blocks of width 64, with batch norm and with He's weights alone, on the same
    weights and batches; SGD with momentum .9 for 800 steps at five rates from .0001 to .1. The headline is the test
    accuracy at the smallest rate: it holds if the network without a norm is at least as good, within a point. Also
    tried: .001, .01, .03 and .1. Claims of their own: at the smallest rate batch norm trains no faster (training
    accuracy of the last 20 steps); with own best rates by validation loss batch norm gains more than a point; its gain
    at own best rates is larger than at the smallest rate.

    ## Prediction
    At .0001 the network with batch norm is far behind: nothing is gained, and much time is lost, as the norm divides
    the gradient by the growing stream. At .1 only batch norm trains at all. At own best rates batch norm is some two
    points better. In between it depends on the rate.

    ## Threats
    The source trains a convolutional network of 110 layers for 165 epochs; 800 steps are 38 epochs, and at .0001
    neither network has learnt all its training images by then, the one with batch norm fewer. What more steps would do
    at that rate is not asked. Six dense blocks without a norm train at a hundred times the source's rate, so .0001 is
    smaller for them than for its network; .001 is the rate at which both learn.
    """

    CODE = "small-rate-no-gain"
    CARD = 45
    TOPIC = "learning rate"
    EXTENSION = True
    SOURCES = ("Bjorck et al. 2018 (arXiv:1806.02375), abstract; figures second hand",)
    CLAIM = "At a small learning rate batch norm gains no test accuracy."
    ON_A_CASE = "the learning rate of a comparison is the set-up's own: the question `generalisation` asks at that rate"
    ENDPOINT = "Test accuracy at the smallest rate, He's weights alone less batch norm"
    MARGIN = 0.01
    MARGIN_REASON = IMAGES
    ARMS = {"none": "no batch norm", "batch": "batch norm"}
    POINTS = {"lr": "lrs"}
    NETWORKS = "residual networks"
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 6, "width": 64},
            "batch": 64,
            "lrs": [0.0001, 0.001, 0.01, 0.03, 0.1],
            "steps": 800,
            "train": None,
            "test": None,
        },
        full={"network": {"name": "cnn", "depth": 54, "width": 16}, "batch": 128, "steps": 60000},
    )

    def network(self, cell: Cell, data: Dataset, device: str) -> nn.Module:
        """Return the residual network of an arm; both have the same initial weights."""
        sizes, outputs = cell.settings["network"], data.classes
        depth, width, seed = sizes["depth"], sizes["width"], stream(cell.seed, "init")
        if sizes["name"] == "cnn":
            model = residual_cnn(depth, width, channels=data.shape[0], outputs=outputs, scheme=cell.arm, seed=seed)
        else:
            inputs = math.prod(data.shape)
            model = residual_mlp(depth, width, inputs=inputs, outputs=outputs, scheme=cell.arm, seed=seed)
        return model.to(device).train()

    def options(self, cell: Cell) -> dict[str, Any]:
        """Train with momentum, as the source does."""
        rate = float(cell.point["lr"])
        return {"optimizer": lambda net: torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)}

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield accuracy at equal rates, the smallest first; speed, and own best rates, are claims of their own."""
        rates = sorted(evidence.settings["lrs"])
        for rate in rates:
            yield Contrast(
                accuracy(),
                "none",
                "batch",
                at={"lr": rate},
                no_worse_than=self.MARGIN,
                name=f"rate {rate:g}",
                says="test accuracy is {effect} without batch norm",
                comparative=("higher", "lower"),
            )
        yield Contrast(
            final("accuracy"),
            "none",
            "batch",
            at={"lr": rates[0]},
            unit="points",
            no_worse_than=0.02,
            margin_reason="two points are one image of a batch of 64",
            name="speed",
            claim="At a small learning rate batch norm trains no faster.",
            says="training accuracy after as many steps is {effect} without batch norm",
            comparative=("higher", "lower"),
        )
        own = {"lr": Best("lr")}
        yield Contrast(
            accuracy(),
            "batch",
            "none",
            at=own,
            name="own best rates",
            claim="At own best learning rates batch norm gains test accuracy.",
            says="test accuracy is {effect} with batch norm, each at its own best rate",
            comparative=("higher", "lower"),
        )
        yield Contrast(
            Quantity(
                "test accuracy at the own best rate less that at the smallest", _gain, unit="points", held_out=True
            ),
            "batch",
            "none",
            at=own,
            name="gain of larger rates",
            claim="Batch norm gains more than the network without it from a learning rate that is not small.",
            says="from the smallest to the own best rate the network with batch norm gains {effect}",
            comparative=("more", "less"),
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw accuracy by rate, and the loss at the smallest."""
        return [
            by_rate_figure(evidence, self.wording.arms),
            self.curves(evidence, "loss", at={"lr": min(evidence.settings["lrs"])}, slug="loss"),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate accuracy at every rate."""
        return [
            self.grid_table(
                [accuracy(), final("accuracy")],
                evidence,
                rows={"arm": list(self.ARMS)},
                columns={"lr": evidence.settings["lrs"]},
                title="Accuracy at every rate",
                caption="0 where a run diverged.",
            )
        ]


def _gain(evidence: Evidence, arm: str, lr: float, **where: Any) -> Floats:
    """Return per seed what an arm gains in test accuracy from a rate against the smallest rate of the grid."""
    smallest = min(evidence.settings["lrs"])
    ends = [evidence.accuracy(arm, lr=rate, **where) for rate in (lr, smallest)]
    return np.asarray(ends[0] - ends[1])
