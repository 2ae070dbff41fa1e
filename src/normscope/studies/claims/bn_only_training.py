"""Training nothing but gamma and beta of a random network."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.studies import AbstractTraining, Arm, Contrast, Evidence, accuracy, final, last, presets
from normscope.studies.lab import norms
from normscope.studies.lab.arms import recorder
from normscope.studies.lab.data import Dataset, Split
from normscope.studies.lab.streams import generator


class BnOnlyTraining(AbstractTraining):
    r"""Gamma and beta alone make a random network accurate.

    ## Claim
    Training only the parameters of batch norm of an otherwise random network gives a high accuracy, far more than
    training as many other parameters (Frankle, Schwab and Morcos 2021, second hand: ResNet-14 48 %, ResNet-110 69.5 %
    on CIFAR-10; a replication with 46 and 68.5 %, its data read; "as many others" from memory).

    ## Method
    Dense networks of 3 and 6 hidden layers of 100, everything at its random start but gamma and beta; or but as many
    weights, chosen at random over all linear layers; or gamma, beta and the last layer; or everything trained. The
    headline is the test accuracy of the first less the second in the deeper network, which is nearer to the source's
    14 to 110 layers; also tried in the shallower network. A claim of its own: gamma and beta alone come within 5 points
    of everything trained.

    ## Prediction
    Holds, the more the deeper. In a pilot on digits, 600 steps, 3 layers, gamma and beta alone reached .72, with the
    last layer .91, all parameters .97; random weights were not tried there.

    ## Threats
    Random weights are one choice of as many parameters; whole units or the last layer might do better. The learning
    rate is the same in all arms and suits the full network.
    """

    CODE = "bn-only-training"
    CARD = 29
    TOPIC = "affine"
    EXTENSION = True
    SOURCES = (
        "Frankle, Schwab and Morcos 2021 (arXiv:2003.00152), second hand",
        "Replication tdtce/BatchNorm_params_training, data read",
    )
    CLAIM = "Training gamma and beta alone gives a far better network than training as many random weights."
    ON_A_CASE = "which parameters learn is no arm of a comparison"
    ENDPOINT = "Test accuracy with gamma and beta trained less with as many random weights trained, deepest network"
    MARGIN = 0.05
    MARGIN_REASON = "the claim is of far more; five points are a quarter of what the source's depths differ by"
    VERSION = 2
    ARMS = {
        "norm": Arm("gamma and beta alone", norms.batch()),
        "random": Arm("as many random weights", norms.batch()),
        "norm and head": Arm("gamma, beta and the last layer", norms.batch()),
        "all": Arm("all parameters", norms.batch()),
    }
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "width": 100},
            "depths": [3, 6],
            "batch": 64,
            "lr": 0.3,
            "steps": 400,
            "train": None,
            "test": None,
        },
        full={"network": {"name": "vgg-a"}, "depths": [None], "batch": 128, "lr": 0.1, "steps": 60000},
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every arm at every depth."""
        for depth in settings["depths"]:
            for arm in self.ARMS:
                yield arm, {"depth": depth or 0}

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return the point's depth, if the network has one."""
        return {"depth": int(cell.point["depth"])} if cell.point["depth"] else {}

    def network(self, cell: Cell, data: Dataset, device: str) -> nn.Module:
        """Return the network, with what the arm trains to be learnt."""
        model = super().network(cell, data, device)
        affine = _affine(model)
        if cell.arm == "random":
            train_random_weights(model, sum(p.numel() for p in affine), cell)
        elif cell.arm != "all":
            wanted = {id(p) for p in affine}
            if cell.arm == "norm and head":
                wanted |= {id(p) for name, p in model.named_parameters() if name.startswith("head")}
            for parameter in model.parameters():
                parameter.requires_grad_(id(parameter) in wanted)
        return model

    def trains(self, cell: Cell) -> bool:
        """All arms but the one whose gradients are masked by a hook."""
        return cell.arm != "random"

    def after(self, cell: Cell, model: nn.Module, split: Split) -> Iterable[Record]:
        """Count what was trained, and what of it was switched off."""
        gammas = [m.weight.detach() for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        record = recorder(cell, "affine")
        yield record("count", sum(p.numel() for p in _affine(model)))
        yield record("off", (torch.cat(gammas).abs() < 0.01).double().mean(), int(cell.settings["steps"]))

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield gamma and beta against random weights, deepest network first; then against the full network."""
        depths = sorted((depth or 0 for depth in evidence.settings["depths"]), reverse=True)
        for depth in depths:
            yield Contrast(
                accuracy(),
                "norm",
                "random",
                at={"depth": depth},
                name=f"{depth} layers",
                says="test accuracy is {effect} with gamma and beta alone than with as many random weights",
                comparative=("higher", "lower"),
            )
        for depth in depths:
            yield Contrast(
                accuracy(),
                "norm",
                "all",
                at={"depth": depth},
                no_worse_than=0.05,
                margin_reason="five points are what the claim allows",
                claim="Gamma and beta alone come within 5 points of the full network.",
                name=f"full, {depth} layers",
                says="test accuracy is {effect} with gamma and beta alone than with everything trained",
                comparative=("higher", "lower"),
            )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the training loss."""
        return [self.curves(evidence, "loss", at={"depth": evidence.settings["depths"][0] or 0}, slug="loss")]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate how the arms end."""
        ends = [final("loss"), final("accuracy"), accuracy(), last("diverged", "share of runs that diverged")]
        affine = [
            last("count", "gammas and betas", probe="affine"),
            last("off", "share of gammas below 0.01", probe="affine"),
        ]
        depths = [depth or 0 for depth in evidence.settings["depths"]]
        rows: dict[str, Sequence[Any]] = {"depth": depths, "arm": list(self.ARMS)}
        caption = f"Means over {len(evidence.seeds)} seeds."
        return [self.grid_table([*ends, *affine], evidence, rows=rows, title="How the arms end", caption=caption)]


def _affine(model: nn.Module) -> list[nn.Parameter]:
    return [p for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for p in m.parameters()]


def train_random_weights(model: nn.Module, count: int, cell: Cell) -> None:
    """Let the optimizer change only so many weights, chosen at random over all linear layers."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    sizes = [weight.numel() for weight in weights]
    chosen = torch.zeros(sum(sizes))
    chosen[torch.randperm(sum(sizes), generator=generator(cell.seed, "weights"))[:count]] = 1
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim >= 2)
    for weight, mask in zip(weights, chosen.split(sizes), strict=True):
        kept = mask.view(weight.shape).to(weight)
        weight.register_hook(lambda gradient, kept=kept: gradient * kept)
