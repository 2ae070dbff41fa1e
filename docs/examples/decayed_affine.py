"""Does weight decay on gamma and beta cost accuracy?"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Record, Verdict
from normscope.studies import AbstractStudy, Evidence
from normscope.studies.lab import norms
from normscope.studies.lab.arms import fit, network, split_of

ARMS = {"all": "decay on all parameters", "spared": "none on gamma and beta", "none": "no decay"}


class DecayedAffine(AbstractStudy):
    """Weight decay on gamma and beta costs accuracy, so they should be spared.

    ## Claim
    Many training recipes take the parameters of norms out of weight decay, because decay on them is said to hurt.

    ## Method
    Five layers of 64 with batch norm on 300 training images, SGD with a weight decay of 0.01: on all parameters, on all
    but gamma and beta, on none. Primary: test accuracy with gamma and beta spared less with decay on all parameters;
    supported above half a percentage point.

    ## Prediction
    No difference worth having: where another batch norm follows, the scale of gamma is cancelled by it.

    ## Threats
    One weight decay and one learning rate; a small network, trained for a few hundred steps.
    """

    CODE = "decayed-affine"
    TOPIC = "affine"
    SOURCES = ("training recipes that spare norms from weight decay",)
    CLAIM = "Test accuracy is higher when gamma and beta are spared from weight decay."
    ENDPOINT = "Test accuracy with gamma and beta spared less with decay on all parameters"
    MARGIN = 0.005
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 5, "width": 64},
            "batch": 64,
            "lr": 0.1,
            "decay": 0.01,
            "steps": 400,
            "train": 300,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield the three arms."""
        for arm in ARMS:
            yield arm, {}

    def run_cell(self, cell: Cell, data: Any, device: str) -> Iterable[Record]:
        """Train with the arm's weight decay; record how large gamma is at the end."""
        model = network(cell, data, norms.batch(), device)
        yield from fit(model, split_of(cell, data, device), cell, optimizer=lambda net: _optimizer(cell, net))
        gammas = torch.cat([module.weight.detach() for module in _norms(model)])
        yield Record(cell.id, int(cell.settings["steps"]), "affine", "", "gamma", float(gammas.abs().mean()))

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the difference in test accuracy, paired by seed."""
        ends = {arm: evidence.last("test_accuracy", arm=arm) for arm in ARMS}
        gammas = {arm: float(evidence.last("gamma", probe="affine", arm=arm).mean()) for arm in ARMS}
        return self.part(
            evidence,
            ends["spared"] - ends["all"],
            reason=f"Accuracy {ends['all'].mean():.4f} with decay on all, {ends['spared'].mean():.4f} with gamma and "
            f"beta spared, {ends['none'].mean():.4f} without decay; mean |gamma| {gammas['all']:.2f}, "
            f"{gammas['spared']:.2f}, {gammas['none']:.2f}.",
            endpoint=self.ENDPOINT,
            primary=True,
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the loss of the three arms."""
        frame = evidence.select(probe="training")
        return [
            curves(frame, y="loss", title="Training loss", y_title="Loss of the step's batch", log=True, labels=ARMS)
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate how the arms end."""
        rows = tuple((words, f"{evidence.last('test_accuracy', arm=arm).mean():.4f}") for arm, words in ARMS.items())
        return [Table("How the arms end", ("Arm", "Test accuracy"), rows)]


def _norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm1d)]


def _optimizer(cell: Cell, model: nn.Module) -> torch.optim.Optimizer:
    decay = 0.0 if cell.arm == "none" else float(cell.settings["decay"])
    affine = [parameter for module in _norms(model) for parameter in module.parameters()]
    known = {id(parameter) for parameter in affine}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups: list[dict[str, Any]] = [
        {"params": rest, "weight_decay": decay},
        {"params": affine, "weight_decay": decay if cell.arm == "all" else 0.0},
    ]
    return torch.optim.SGD(groups, lr=float(cell.settings["lr"]))
