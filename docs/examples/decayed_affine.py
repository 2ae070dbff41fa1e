"""Does weight decay on gamma and beta cost accuracy?"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.studies import AbstractStudy, Contrast, Evidence, accuracy, last, presets
from normscope.studies.lab import norms
from normscope.studies.lab.arms import fit, network, split_of


class DecayedAffine(AbstractStudy):
    """Weight decay on gamma and beta costs accuracy, so they should be spared.

    ## Claim
    Many training recipes take the parameters of norms out of weight decay, because decay on them is said to hurt.

    ## Method
    Five layers of 64 with batch norm on 300 training images, SGD with a weight decay of 0.01: on all parameters, on all
    but gamma and beta, on none. The headline is test accuracy with gamma and beta spared less with decay on all
    parameters. A claim of its own: gamma ends larger when it is spared.

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
    MARGIN_REASON = "half a point is one or two of the 300 test images"
    ARMS: ClassVar = {"all": "decay on all parameters", "spared": "none on gamma and beta", "none": "no decay"}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 5, "width": 64},
            "batch": 64,
            "lr": 0.1,
            "decay": 0.01,
            "steps": 400,
            "train": 300,
            "test": None,
        },
    )

    def run_cell(self, cell: Cell, data: Any, device: str) -> Iterable[Record]:
        """Train with the arm's weight decay; record how large gamma is at the end."""
        model = network(cell, data, norms.batch(), device)
        yield from fit(model, split_of(cell, data, device), cell, optimizer=lambda net: _optimizer(cell, net))
        gammas = torch.cat([module.weight.detach() for module in _norms(model)])
        yield Record(cell.id, int(cell.settings["steps"]), "affine", "", "gamma", float(gammas.abs().mean()))

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the test accuracy with gamma and beta spared less with decay on all, and their size in both."""
        yield Contrast(
            accuracy(),
            "spared",
            "all",
            name="accuracy",
            says="test accuracy is {effect} with gamma and beta spared",
            comparative=("higher", "lower"),
        )
        yield Contrast(
            last("gamma", "mean size of gamma at the end", probe="affine", logs=True),
            "spared",
            "all",
            scale="log-ratio",
            margin=math.log(1.1),
            margin_reason="below a tenth nobody would speak of another size",
            claim="Sparing gamma from decay leaves it larger.",
            name="gamma",
            says="gamma ends {effect} when it is spared",
            comparative=("larger", "smaller"),
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the loss of the three arms."""
        return [self.curves(evidence, "loss")]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate how the arms end."""
        columns = [accuracy(), last("gamma", "mean size of gamma", probe="affine")]
        return [self.grid_table(columns, evidence, rows={"arm": list(self.ARMS)}, title="How the arms end")]


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
