"""How large a learning rate may be, with batch norm and without."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from normscope.plots import Figure, Table
from normscope.records import Cell
from normscope.stats import extent
from normscope.studies import AbstractTraining, Arm, Best, Contrast, Evidence, Quantity, accuracy, presets
from normscope.studies.case_question import CaseQuestion
from normscope.studies.evidence import Arrivals
from normscope.studies.figures import by_rate_figure
from normscope.studies.lab import norms


class LearningRateTolerance(AbstractTraining):
    r"""Batch norm allows much larger learning rates.

    ## Claim
    Batch norm makes training robust to the learning rate and allows far larger ones; that is where speed and
    generalisation come from, and at small learning rates there is no benefit (article on batch norm; Ioffe & Szegedy
    2015, section 4.2.2; Bjorck et al. 2018; Santurkar et al. 2018, figure 1).

    ## Method
    Dense networks of 3 and 10 hidden layers of 64, with and without batch norm, at eight learning rates a half decade
    apart. The largest usable learning rate of an arm and seed is the largest up to which it ends with at least 90 % of
    the best training accuracy of that arm and seed, interpolated between two rates of the grid; a run that diverged has
    none right. A seed in which an arm is usable up to the largest rate of the grid gives a bound. The headline is the
    ratio with over without batch norm at 10 layers, the deeper network being nearer to those of the sources; also
    tried at 3 layers. The margin is no multiple of the grid's step. A claim of its own: at learning rates that suit the
    network without it, batch norm makes no difference to test accuracy, at the best rate of that network and at the
    smallest rate of the grid. It says something only where batch norm gains at own best rates.

    ## Prediction
    Holds, the more the deeper: three times at 3 layers, ten at 10 and more at 20. At small learning rates batch norm is
    slower.

    ## Threats
    A grid of half decades: between its rates the accuracy is taken to fall on a line, so a factor is known to about a
    third of itself. Largest usable is not best; the network without batch norm has He initialisation, which is what
    suits it.
    """

    CODE = "learning-rate-tolerance"
    CARD = 18
    TOPIC = "learning rate"
    SOURCES = (
        "Article on batch norm, list of benefits",
        "Ioffe & Szegedy 2015 (arXiv:1502.03167), sections 3.3 and 4.2.2",
        "Bjorck et al. 2018 (arXiv:1806.02375), figures and second hand",
        "Santurkar et al. 2018 (arXiv:1805.11604), figure 1",
    )
    CLAIM = "Batch norm allows much larger learning rates."
    ON_A_CASE = CaseQuestion("rates", rates=(0.1, 0.3, 1.0, 3.0, 10.0))
    ENDPOINT = "Largest usable learning rate with batch norm over without, 10 hidden layers"
    MARGIN = math.log(5) / 2
    MARGIN_REASON = "half (on a log scale) of the five times that the source began with, and no step of the grid"
    ARMS = {"none": Arm("no batch norm", norms.none()), "batch": Arm("batch norm", norms.batch())}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "width": 64},
            "depths": [3, 10],
            "judged": 10,
            "batch": 64,
            "lrs": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
            "steps": 150,
            "train": None,
            "test": None,
        },
        full={"network": {"name": "vgg-a"}, "depths": [None], "judged": 0, "batch": 128, "steps": 15000},
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield both arms at every depth and learning rate; 0 for a network that has no depth to set."""
        for depth in settings["depths"]:
            for lr in settings["lrs"]:
                for arm in self.ARMS:
                    yield arm, {"depth": depth or 0, "lr": lr}

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return the point's depth, if the network has one."""
        return {"depth": int(cell.point["depth"])} if cell.point["depth"] else {}

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the largest usable rate at the judged depth, at the others, and accuracy at rates that suit both."""
        judged, lrs = evidence.settings["judged"], evidence.settings["lrs"]
        others = [depth or 0 for depth in evidence.settings["depths"] if (depth or 0) != judged]
        for depth in (judged, *others):
            yield Contrast(
                LARGEST,
                "batch",
                "none",
                at={"depth": depth},
                scale="log-ratio",
                name=f"{depth} layers",
                says="the largest usable learning rate is {effect} with batch norm",
                comparative=("larger", "smaller"),
            )
        for depth in (judged, *others):
            own = Best("lr").of(evidence, arm="none", depth=depth)
            gains = Contrast(
                accuracy(),
                "batch",
                "none",
                at={"depth": depth, "lr": Best("lr")},
                margin=0.005,
                margin_reason=IMAGES,
                claim="At own best learning rates batch norm gives a better test accuracy.",
                says="test accuracy is {effect} with batch norm",
                comparative=("higher", "lower"),
            )
            for name, rate in {"best without it": own, "smallest": min(lrs)}.items():
                yield Contrast(
                    accuracy(),
                    "batch",
                    "none",
                    at={"depth": depth, "lr": rate},
                    equal_within=0.01,
                    margin_reason="a point is three of the 300 test images",
                    claim="At learning rates that suit the network without it, batch norm changes no test accuracy.",
                    name=f"{name}, {depth} layers",
                    says="test accuracy is {effect} with batch norm",
                    comparative=("higher", "lower"),
                    premises=(gains,) if name != "smallest" else (),
                )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw accuracy by learning rate, and the loss at the best rate of the plain network."""
        depth = evidence.settings["judged"]
        rate = Best("lr").of(evidence, arm="none", depth=depth)
        return [
            by_rate_figure(evidence, self.wording.arms, depth=depth),
            self.curves(evidence, "loss", at={"depth": depth, "lr": rate}, slug="loss"),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate accuracy at every rate."""
        return [
            self.grid_table(
                accuracy(),
                evidence,
                rows={"depth": [depth or 0 for depth in evidence.settings["depths"]], "arm": list(self.ARMS)},
                columns={"lr": evidence.settings["lrs"]},
                caption="0 where a run diverged.",
            )
        ]


def _largest(evidence: Evidence, **where: Any) -> Arrivals:
    """Return per seed the log of the largest usable learning rate; censored where that of the grid is usable."""
    rates = sorted(evidence.settings["lrs"])
    ends = np.array([np.nan_to_num(evidence.final("accuracy", lr=lr, **where)) for lr in rates])
    # A run that diverged ends with the accuracy of its last batches: its rate is not usable.
    lost = np.array([evidence.last("diverged", lr=lr, **where) for lr in rates])
    ends = np.where(lost > 0, 0.0, ends)
    found = [extent(rates, seed, 0.9) for seed in ends.T]
    learnt = ends.max(0) > max(evidence.floor, 0.0)  # of an arm that learns at no rate there is no largest rate
    largest = np.where(learnt, [each.high for each in found], np.nan)
    return Arrivals(largest, learnt & np.array([each.above for each in found]), math.log(rates[-1]))


IMAGES = "half a point is one or two of the 300 test images"
LARGEST = Quantity("largest usable learning rate", _largest, logs=True)
