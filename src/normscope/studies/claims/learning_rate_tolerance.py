"""How large a learning rate may be, with batch norm and without."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import nn

from normscope.plots import Figure, Table
from normscope.records import Cell, Verdict
from normscope.studies.evidence import Evidence, typical
from normscope.studies.figures import accuracy, by_rate_figure, loss_figure
from normscope.studies.judging import best_rate, equivalent, with_parts
from normscope.studies.lab import norms
from normscope.studies.lab.arms import network
from normscope.studies.training import AbstractTraining

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

ARMS = {"none": "no batch norm", "batch": "batch norm"}


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
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "width": 64},
            "depths": [3, 10],
            "judged": 10,
            "batch": 64,
            "lrs": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
            "steps": 150,
            "train": None,
            "test": None,
        },
        "full": {
            "network": {"name": "vgg-a"},
            "depths": [None],
            "judged": 0,
            "batch": 128,
            "lrs": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
            "steps": 15000,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield both arms at every depth and learning rate."""
        for depth in settings["depths"]:
            for lr in settings["lrs"]:
                for arm in ARMS:
                    yield arm, {"depth": depth or 0, "lr": lr}

    def network(self, cell: Cell, data: "Dataset", device: str) -> nn.Module:
        """Return the network of an arm."""
        depth = int(cell.point["depth"])
        factory = norms.none() if cell.arm == "none" else norms.batch()
        return network(cell, data, factory, device, **({"depth": depth} if depth else {}))

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the largest usable rate; depth, small rates and mediation are parts."""
        judged = evidence.settings["judged"]
        primary = self._larger(evidence, judged, self.ENDPOINT)
        parts = [
            self._larger(evidence, depth or 0, f"Largest usable rate with over without, {depth} hidden layers")
            for depth in evidence.settings["depths"]
            if (depth or 0) != judged
        ]
        small = min(evidence.settings["lrs"])
        plain, normed = (accuracy(evidence, arm, depth=judged, lr=small) for arm in ARMS)
        parts.append(
            equivalent(
                self,
                evidence,
                normed - plain,
                0.01,
                claim="At small learning rates batch norm brings no benefit and no harm.",
                endpoint=f"Test accuracy with less without batch norm at learning rate {small:g}",
                reason=f"{typical(normed)} with, {typical(plain)} without.",
            )
        )
        parts.append(self._mediation(evidence, judged))
        return with_parts(primary, parts)

    def _larger(self, evidence: Evidence, depth: int, endpoint: str) -> Verdict:
        plain, normed = (np.log(_largest(evidence, arm, depth)) for arm in ARMS)
        return self.part(
            evidence,
            normed - plain,
            scale="log-ratio",
            endpoint=endpoint,
            reason=f"{typical(normed, logs=True)} with, {typical(plain, logs=True)} without batch norm "
            "(geometric means).",
        )

    def _mediation(self, evidence: Evidence, depth: int) -> Verdict:
        own = {arm: best_rate(_at(evidence, depth), arm) for arm in ARMS}
        plain = accuracy(evidence, "none", depth=depth, lr=own["none"])
        best = accuracy(evidence, "batch", depth=depth, lr=own["batch"])
        shared = accuracy(evidence, "batch", depth=depth, lr=own["none"])
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
        """Draw accuracy by learning rate, and the loss at own best rates of the plain network."""
        judged = evidence.settings["judged"]
        rate = best_rate(_at(evidence, judged), "none")
        return [
            by_rate_figure(evidence, ARMS, depth=judged),
            loss_figure(evidence, ARMS, f"Training loss at learning rate {rate:g}", depth=judged, lr=rate),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate accuracy at every rate."""
        rows = tuple(
            (depth or "", words, *(typical(accuracy(evidence, arm, depth=depth or 0, lr=lr))
                                   for lr in evidence.settings["lrs"]))
            for depth in evidence.settings["depths"]
            for arm, words in ARMS.items()
        )  # fmt: skip
        columns = ("Hidden layers", "Arm", *(f"{lr:g}" for lr in evidence.settings["lrs"]))
        return [Table("Test accuracy by learning rate", columns, rows, "0 where a run diverged.")]


def _at(evidence: Evidence, depth: int) -> Evidence:
    return Evidence(evidence.select(depth=depth), evidence.settings, evidence.seeds, evidence.level, evidence.data)


def _largest(evidence: Evidence, arm: str, depth: int) -> np.ndarray:
    rates = sorted(evidence.settings["lrs"])
    ends = np.array([np.nan_to_num(evidence.final("accuracy", arm=arm, depth=depth, lr=lr)) for lr in rates])
    # A run that diverged ends with the accuracy of its last batches: its rate is not usable.
    lost = np.array([evidence.last("diverged", arm=arm, depth=depth, lr=lr) for lr in rates])
    ends = np.where(lost > 0, 0.0, ends)
    usable = ends >= 0.9 * ends.max(0)
    return np.array([max(rate for rate, fine in zip(rates, usable[:, i], strict=True) if fine)
                     for i in range(ends.shape[1])])  # fmt: skip
