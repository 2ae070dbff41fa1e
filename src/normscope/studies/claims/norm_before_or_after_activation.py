"""Batch norm before the activation, or after it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch import Tensor, nn

from normscope.plots import Figure, Table, curves
from normscope.probes import Conditioning
from normscope.records import Cell, Verdict
from normscope.studies.evidence import Evidence, typical
from normscope.studies.judging import best_rate, equivalent, with_parts
from normscope.studies.lab import norms
from normscope.studies.lab.arms import batch_norm, network
from normscope.studies.training import AbstractTraining

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

ARMS = {
    "before": "before the activation",
    "after": "after the activation",
    "before, no affine": "before, without gamma and beta",
    "after, no affine": "after, without gamma and beta",
}


class _After(nn.Module):
    """A rectifier, then the norm: what stands in a block whose own activation is the identity."""

    stackable = True

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Apply the two in turn."""
        out: Tensor = self.norm(nn.functional.relu(x))
        return out


class NormBeforeOrAfterActivation(AbstractTraining):
    r"""Batch norm is better after the activation than before it.

    ## Claim
    Batch norm can be put after the activation, where gamma and beta may become unnecessary, and that order is better
    (comment under "How does the batch normalization layer work?"). Ioffe & Szegedy 2015, section 3.2, put it before:
    Wu + b is more nearly normal than u. A benchmark of CaffeNet at 128 pixels found .474 before and .499 after (second
    hand).

    ## Method
    Dense networks of three hidden layers of 100 with batch norm before or after each rectifier, with gamma and beta
    learnt or left out, same initial weights, each arm at every learning rate of a grid. Primary endpoint: test accuracy
    after less before, each at its own best learning rate by validation loss; supported above half a percentage point,
    refuted below it. Parts: the same at one learning rate; whether gamma and beta matter in either place (two one-sided
    tests, half a point); and the condition number of the layers' inputs at 95 % of the energy.

    ## Prediction
    A small difference that depends on the network; after the activation gamma and beta do not matter; the inputs of
    the following layers are far better conditioned after, because the mean that a rectifier leaves is taken out.

    ## Threats
    With three layers and easy data half a point is near the noise of ten seeds. The last layer sees normalized inputs
    only in the arm after, which changes the learning rate that suits it.
    """

    CODE = "norm-before-or-after-activation"
    CARD = 28
    TOPIC = "placement"
    SOURCES = (
        "Q&A on the layer, comment on the order",
        "Ioffe & Szegedy 2015 (arXiv:1502.03167), sections 3.2 and 5",
        "CaffeNet benchmark of ducha-aiki (second hand)",
    )
    CLAIM = "Batch norm after the activation gives a better network than batch norm before it."
    ENDPOINT = "Test accuracy with the norm after less before the activation, each at its own best learning rate"
    MARGIN = 0.005
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "batch": 64,
            "lrs": [0.03, 0.1, 0.3, 1.0],
            "same": 0.1,
            "steps": 250,
            "every": 250,
            "train": None,
            "test": None,
        },
        "full": {
            "network": {"name": "vgg-a"},
            "batch": 128,
            "lrs": [0.01, 0.03, 0.1, 0.3],
            "same": 0.1,
            "steps": 15000,
            "every": 1000,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every arm at every learning rate."""
        for lr in settings["lrs"]:
            for arm in ARMS:
                yield arm, {"lr": lr}

    def network(self, cell: Cell, data: "Dataset", device: str) -> nn.Module:
        """Return the network of an arm."""
        affine = "no affine" not in cell.arm
        factory = norms.batch() if affine else batch_norm(learn_gain=False, learn_shift=False)
        after = cell.arm.startswith("after")
        return network(
            cell,
            data,
            (lambda place: _After(factory(place))) if after else factory,
            device,
            activation="linear" if after else "relu",
        )

    def trains(self, cell: Cell) -> bool:
        """All but the cells whose layers' inputs are watched."""
        return bool(cell.point["lr"] != cell.settings["same"])

    def options(self, cell: Cell) -> dict[str, Any]:
        """Watch the inputs of the layers at one learning rate."""
        return {} if self.trains(cell) else {"probes": [Conditioning()], "every": int(cell.settings["every"])}

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge at own best learning rates; the same rate, affine and conditioning are parts."""
        rates = {arm: best_rate(evidence, arm) for arm in ARMS}
        primary = self._difference(evidence, rates, self.ENDPOINT)
        same = dict.fromkeys(ARMS, evidence.settings["same"])
        parts = [self._difference(evidence, same, f"Test accuracy after less before, both at {same['after']:g}")]
        for where in ("before", "after"):
            with_, without = (_accuracy(evidence, arm, rates[arm]) for arm in (where, f"{where}, no affine"))
            parts.append(
                equivalent(
                    self,
                    evidence,
                    with_ - without,
                    0.005,
                    claim=f"Gamma and beta do not matter {ARMS[where]}.",
                    endpoint=f"Test accuracy with less without gamma and beta, {ARMS[where]}",
                    reason=f"{typical(with_)} with, {typical(without)} without.",
                )
            )
        kappa = {arm: _condition(evidence, arm) for arm in ("before", "after")}
        parts.append(
            self.part(
                evidence,
                kappa["before"] - kappa["after"],
                scale="log-ratio",
                margin=float(np.log(2)),
                claim="After the activation the layers' inputs are better conditioned.",
                endpoint="Condition number of the layers' inputs at 95 % of the energy, before over after",
                reason=f"{typical(kappa['before'], logs=True)} before, {typical(kappa['after'], logs=True)} after.",
            )
        )
        return with_parts(primary, parts)

    def _difference(self, evidence: Evidence, rates: Mapping[str, float], endpoint: str) -> Verdict:
        after, before = (_accuracy(evidence, arm, rates[arm]) for arm in ("after", "before"))
        return self.part(
            evidence,
            after - before,
            endpoint=endpoint,
            reason=f"{typical(after)} after (learning rate {rates['after']:g}), {typical(before)} before "
            f"({rates['before']:g}).",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw accuracy by learning rate, and the loss at the same one."""
        return [
            curves(
                evidence.select(probe="training", name="test_accuracy"),
                y="test_accuracy",
                x="lr",
                slug="accuracy-by-rate",
                title="Test accuracy at the end, by learning rate",
                x_title="Learning rate",
                y_title="Test accuracy",
                log_x=True,
                labels=ARMS,
                caption=", ".join(
                    f"{typical(_accuracy(evidence, arm, best_rate(evidence, arm)))} {words} at its best rate"
                    for arm, words in ARMS.items()
                )
                + ".",
            ),
            curves(
                evidence.select(probe="training", lr=evidence.settings["same"]),
                y="loss",
                slug="loss",
                title=f"Training loss at learning rate {evidence.settings['same']:g}",
                y_title="Cross-entropy of the step's batch",
                log=True,
                labels=ARMS,
                caption=evidence.final_losses(ARMS, lr=evidence.settings["same"]),
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate how the arms end at every learning rate."""
        rows = tuple(
            (words.capitalize(), *(typical(_accuracy(evidence, arm, lr)) for lr in evidence.settings["lrs"]))
            for arm, words in ARMS.items()
        )
        columns = ("Norm", *(f"learning rate {lr:g}" for lr in evidence.settings["lrs"]))
        return [Table("Test accuracy", columns, rows, f"Means over {len(evidence.seeds)} seeds; 0 where diverged.")]


def _accuracy(evidence: Evidence, arm: str, lr: float) -> np.ndarray:
    """Return the test accuracy per seed; a run that diverged has none right."""
    return np.nan_to_num(evidence.last("test_accuracy", arm=arm, lr=lr), nan=0.0)


def _condition(evidence: Evidence, arm: str) -> np.ndarray:
    frame = evidence.select(probe="conditioning", name="condition_95", arm=arm)
    first = frame["site"].unique().sort().to_list()[:1]  # the data themselves are alike in all arms
    return evidence.mean_log(frame.filter(~frame["site"].is_in(first)))
