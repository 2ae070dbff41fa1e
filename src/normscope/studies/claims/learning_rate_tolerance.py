"""How large a learning rate may be, with batch norm and without."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from normscope.plots import Figure, Table
from normscope.records import Cell, Verdict
from normscope.studies import AbstractTraining, Arm, Best, Contrast, Evidence, Quantity, accuracy, presets, typical
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
    apart. The largest usable learning rate of an arm and seed is the largest at which it ends with at least 90 % of
    the best training accuracy of that arm and seed. Primary: its ratio with over without batch norm at 10 layers,
    supported above 3. Parts: the same at the other depth; test accuracy at the smallest learning rate (alike within
    one point?); how much of batch norm's gain in test accuracy is left at the largest learning rate that suits the
    network without it (supported as the cause if less than 30 %).

    ## Prediction
    Supported, the more the deeper: ten times at 3 layers, thirty at 10 and 20. At small learning rates batch norm is
    slower.

    ## Threats
    A grid of half decades measures factors of three. Largest usable is not best; the network without batch norm has He
    initialisation, which is what suits it.
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
    ENDPOINT = "Largest usable learning rate with batch norm over without, 10 hidden layers"
    MARGIN = math.log(3)
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

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast | Verdict]:
        """Yield the largest usable rate; depth, small rates and mediation are parts."""
        judged = evidence.settings["judged"]
        others = [depth or 0 for depth in evidence.settings["depths"] if (depth or 0) != judged]
        for depth in (judged, *others):
            yield Contrast(
                Quantity("largest usable learning rate", _log_largest, logs=True),
                "batch",
                "none",
                at={"depth": depth},
                scale="log-ratio",
            )
        yield Contrast(
            accuracy(),
            "batch",
            "none",
            at={"depth": judged, "lr": min(evidence.settings["lrs"])},
            equal_within=0.01,
            claim="At small learning rates batch norm brings no benefit and no harm.",
        )
        yield self._mediation(evidence, judged)

    def _mediation(self, evidence: Evidence, depth: int) -> Verdict:
        """Judge how much of batch norm's gain is left at the rate that suits the network without it: three runs."""
        own = {arm: Best("lr").of(evidence, arm=arm, depth=depth) for arm in self.ARMS}
        plain = evidence.accuracy("none", depth=depth, lr=own["none"])
        best = evidence.accuracy("batch", depth=depth, lr=own["batch"])
        shared = evidence.accuracy("batch", depth=depth, lr=own["none"])
        gain = float((best - plain).mean())  # of a loss there is no share to explain
        left = (shared - plain) / gain if gain > 0 else np.full(len(plain), math.nan)
        return self.part(
            evidence,
            0.3 - left,
            scale="value",
            margin=0.0,
            claim="The gain in test accuracy is that of larger learning rates.",
            endpoint="0.3 less the share of the gain left at the learning rate that suits the network without",
            reason=f"Batch norm gains {100 * gain:.2g} points at own best rates ({own['batch']:g} against "
            f"{own['none']:g}); at {own['none']:g} it has {typical(left)} of that.",
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


def _log_largest(evidence: Evidence, **where: Any) -> np.ndarray:
    """Return per seed the log of the largest usable learning rate."""
    rates = sorted(evidence.settings["lrs"])
    ends = np.array([np.nan_to_num(evidence.final("accuracy", lr=lr, **where)) for lr in rates])
    # A run that diverged ends with the accuracy of its last batches: its rate is not usable.
    lost = np.array([evidence.last("diverged", lr=lr, **where) for lr in rates])
    ends = np.where(lost > 0, 0.0, ends)
    usable = ends >= 0.9 * ends.max(0)
    largest = [max(rate for rate, fine in zip(rates, seed, strict=True) if fine) for seed in usable.T]
    return np.log(np.array(largest))
