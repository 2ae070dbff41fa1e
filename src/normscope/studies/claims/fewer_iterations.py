"""How many steps training takes, with batch norm and without, each at its own best learning rate."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import nn

from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Verdict
from normscope.stats import restricted_mean
from normscope.studies.evidence import Evidence, typical
from normscope.studies.figures import accuracy
from normscope.studies.judging import equivalent, with_parts
from normscope.studies.lab import norms
from normscope.studies.lab.arms import network
from normscope.studies.training import AbstractTraining

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

ARMS = {"none": "no batch norm", "batch": "batch norm"}
#: Activation, and variance of the initial weights times the number of inputs.
NETWORKS: dict[str, dict[str, Any]] = {
    "sigmoid": {"activation": "sigmoid", "gain": 1.0},
    "tanh": {"activation": "tanh", "gain": 1.0},
    "relu": {"activation": "relu", "gain": 2.0},
    "relu, torch's default": {"activation": "relu", "gain": 1 / 3},
}


class FewerIterations(AbstractTraining):
    r"""Batch norm reaches the same accuracy in fewer iterations.

    ## Claim
    With batch norm a high accuracy is reached in fewer iterations (14 times fewer on ImageNet), and without it the
    network eventually gets there too (answer to "What is the effect of batch normalization on the gradient?"; Ioffe &
    Szegedy 2015, section 4.2). The factor 14 bundles seven other changes; batch norm alone made it 2.3 there.

    ## Method
    Dense networks of three hidden layers of 100, batches of 60: sigmoid with small weights as in the source's section
    4.1, tanh, rectifiers with He's and with torch's initial weights; with and without batch norm, at four learning
    rates. The time is the first step at which the running training accuracy reaches 90 %; runs that never do are
    censored at the end, and restricted means are compared. Each arm is taken at its own best learning rate: that of the
    least mean time, chosen over all seeds. Primary: time without over with batch norm for the sigmoid network,
    supported above 1.5 times. Parts: the other networks, the same learning rate, and the accuracy at the end (within
    one point?).

    ## Prediction
    Supported for saturating and badly scaled networks (nine times); no difference for shallow rectifiers with He's
    initialisation.

    ## Threats
    Choosing the best learning rate by the same times favours both arms alike. Steps are not seconds: a step with batch
    norm costs more. Accuracy on training batches stands for that on test data.
    """

    CODE = "fewer-iterations"
    CARD = 20
    TOPIC = "speed"
    SOURCES = (
        "Q&A on the gradient, answer on iterations",
        "Ioffe & Szegedy 2015 (arXiv:1502.03167), sections 4.1 and 4.2, figures 1a and 3",
    )
    CLAIM = "Batch norm reaches the same accuracy in fewer iterations."
    ENDPOINT = "Steps to 90 % training accuracy without over with batch norm, own best learning rates, sigmoid network"
    MARGIN = math.log(1.5)
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "networks": list(NETWORKS),
            "batch": 60,
            "lrs": [0.03, 0.1, 0.5, 2.0],
            "same": 0.5,
            "target": 0.9,
            "steps": 300,
            "train": None,
            "test": None,
        },
        "full": {
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "networks": list(NETWORKS),
            "batch": 60,
            "lrs": [0.03, 0.1, 0.5, 2.0],
            "same": 0.5,
            "target": 0.95,
            "steps": 50000,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield both arms of every network at every learning rate."""
        for name in settings["networks"]:
            for lr in settings["lrs"]:
                for arm in ARMS:
                    yield arm, {"net": name, "lr": lr}

    def network(self, cell: Cell, data: "Dataset", device: str) -> nn.Module:
        """Return the network of an arm."""
        factory = norms.none() if cell.arm == "none" else norms.batch()
        return network(cell, data, factory, device, **NETWORKS[str(cell.point["net"])])

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the sigmoid network at own best rates; the rest are parts."""
        nets = evidence.settings["networks"]
        primary = self._faster(evidence, nets[0], None, self.ENDPOINT)
        parts = [
            self._faster(evidence, net, None, f"Steps without over with, own best rates, {net}") for net in nets[1:]
        ]
        same = evidence.settings["same"]
        parts += [
            self._faster(evidence, net, same, f"Steps without over with, learning rate {same:g}, {net}") for net in nets
        ]
        for net in nets:
            plain, normed = (accuracy(evidence, arm, net=net, lr=_best(evidence, arm, net)) for arm in ARMS)
            parts.append(
                equivalent(
                    self,
                    evidence,
                    normed - plain,
                    0.01,
                    claim="Without batch norm the network gets to the same accuracy.",
                    endpoint=f"Test accuracy with less without batch norm at the end, own best rates, {net}",
                    reason=f"{typical(normed)} with, {typical(plain)} without.",
                )
            )
        return with_parts(primary, parts)

    def _faster(self, evidence: Evidence, net: str, lr: float | None, endpoint: str) -> Verdict:
        rates = {arm: lr or _best(evidence, arm, net) for arm in ARMS}
        (plain, missed), (normed, also) = (_steps(evidence, arm, net, rates[arm]) for arm in ARMS)
        return self.part(
            evidence,
            np.log(plain) - np.log(normed),
            scale="log-ratio",
            endpoint=endpoint,
            reason=f"{typical(plain)} steps without (learning rate {rates['none']:g}, {missed} runs never get there), "
            f"{typical(normed)} with (learning rate {rates['batch']:g}, {also}).",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw accuracy over steps at own best rates for two networks."""
        found = []
        for net in (evidence.settings["networks"][0], "relu"):
            rates = {arm: _best(evidence, arm, net) for arm in ARMS}
            frame = evidence.select(probe="training", net=net)
            kept = [frame.filter((frame["arm"] == arm) & (frame["lr"] == rate)) for arm, rate in rates.items()]
            found.append(
                curves(
                    kept[0].vstack(kept[1]),
                    y="accuracy",
                    slug=f"accuracy-{net}",
                    title=f"Training accuracy, {net}, each at its own best learning rate",
                    y_title="Accuracy on the step's batch",
                    labels=ARMS,
                    reference={"target": evidence.settings["target"]},
                    caption=self._faster(evidence, net, None, "").reason,
                )
            )
        return found

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate times at every rate."""
        rows = tuple(
            (net, words, *(_restricted(evidence, arm, net, lr) for lr in evidence.settings["lrs"]))
            for net in evidence.settings["networks"]
            for arm, words in ARMS.items()
        )
        columns = ("Network", "Arm", *(f"learning rate {lr:g}" for lr in evidence.settings["lrs"]))
        caption = (
            f"Kaplan-Meier means restricted to {evidence.settings['steps']} steps, with their "
            f"{evidence.level:.0%} intervals; in brackets, how many runs never get there."
        )
        return [Table("Steps to the target", columns, rows, caption)]


def _restricted(evidence: Evidence, arm: str, net: str, lr: float) -> str:
    steps, never = _steps(evidence, arm, net, lr)
    horizon = float(evidence.settings["steps"])
    found = restricted_mean(steps, steps < horizon, horizon, level=evidence.level)
    said = f"{found.point:.0f} ({found.low:.0f} to {found.high:.0f})"
    return f"{said} [{never}]" if never else said


def _steps(evidence: Evidence, arm: str, net: str, lr: float) -> tuple[np.ndarray, int]:
    return evidence.steps_to(
        evidence.settings["target"], horizon=int(evidence.settings["steps"]), arm=arm, net=net, lr=lr
    )


def _best(evidence: Evidence, arm: str, net: str) -> float:
    rates: list[float] = list(evidence.settings["lrs"])
    return min(rates, key=lambda lr: float(np.log(_steps(evidence, arm, net, lr)[0]).mean()))
