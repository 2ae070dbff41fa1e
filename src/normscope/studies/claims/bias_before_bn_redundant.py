"""A bias in front of batch norm: does it do anything?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.studies import AbstractTraining, Contrast, Evidence, Quantity, accuracy, last, presets
from normscope.studies.case_question import IDENTITY
from normscope.studies.lab.arms import batch_norm, network, recorder, split_of
from normscope.studies.lab.data import Dataset, Split

OPTIMIZERS = {"sgd": "SGD", "momentum": "SGD with momentum", "adam": "Adam"}
DOUBLE = {"optimizer": "sgd", "bits": 64}


class BiasBeforeBnRedundant(AbstractTraining):
    r"""A bias before batch norm is cancelled by it and can be left out.

    ## Claim
    The bias of the layer before batch norm is cancelled by the subtraction of the mean; beta plays its role (answer to
    "What is the effect of batch normalization on the gradient?"; Ioffe & Szegedy 2015, section 3.2; Goodfellow et al.
    2016, section 8.7.1).

    ## Method
    Dense networks of three hidden layers of 100 with and without those biases, same weights and batches. In float64:
    the largest gradient of such a bias over the largest gradient of a beta, over all layers and steps. That is an
    identity: exact below 1e-12 in every seed. A claim of its own: the losses of the two runs are the same (to 1e-9).
    In float32: how far the biases drift under SGD, SGD with momentum and Adam, and whether evaluation differs.

    ## Prediction
    Exact: the gradient is the sum over the batch of batch norm's input gradient, which is zero. In float32 rounding
    leaves gradients of about 1e-11; SGD moves the biases by 1e-9, Adam, which divides by their size, a million times
    as far.

    ## Threats
    Holds where the bias lies inside what is normalized, in train mode, over the whole batch: not with statistics in
    eval mode, of ghost batches in part, nor where batch norm stands before an addition.
    """

    CODE = "bias-before-bn-redundant"
    CARD = 2
    TOPIC = "affine"
    SOURCES = (
        "Q&A on the gradient, answer on overfitting",
        "Ioffe & Szegedy 2015 (arXiv:1502.03167), section 3.2",
        "Goodfellow, Bengio and Courville 2016, section 8.7.1",
    )
    CLAIM = "A bias before batch norm is cancelled by it."
    ON_A_CASE = IDENTITY
    ENDPOINT = "Gradient of a bias before batch norm over the gradient of beta, largest of layers and steps, float64"
    MARGIN = math.log(100)
    MARGIN_REASON = "a bias of a hundred times 1e-9 is still far below what evaluation could notice"
    ARMS = {"bias": "with biases before batch norm", "no bias": "without"}
    CONDITIONS = {"optimizer": ""}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "batch": 64,
            "lr": 0.1,
            "adam_lr": 0.001,
            "steps": 300,
            "train": None,
            "test": None,
        },
        full={"network": {"name": "mlp", "depth": 8, "width": 512}, "batch": 128, "steps": 15000},
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield both arms with SGD in float64, and with every optimizer in float32."""
        for arm in self.ARMS:
            yield arm, DOUBLE
            for optimizer in OPTIMIZERS:
                yield arm, {"optimizer": optimizer, "bits": 32}

    def network(self, cell: Cell, data: Dataset, device: str) -> nn.Module:
        """Return the network with or without biases, in the point's precision."""
        return network(cell, data, batch_norm(dtype=_kind(cell)), device, bias=cell.arm == "bias").to(_kind(cell))

    def split(self, cell: Cell, data: Dataset, device: str) -> Split:
        """Return the data in the point's precision."""
        split, kind = split_of(cell, data, device), _kind(cell)
        return replace(split, x_train=split.x_train.to(kind), x_val=split.x_val.to(kind), x_test=split.x_test.to(kind))

    def options(self, cell: Cell) -> dict[str, Any]:
        """Watch the gradients of biases before norms, and train with the point's optimizer."""
        record, steps = recorder(cell, "bias"), int(cell.settings["steps"])
        worst = 0.0

        def watch(step: int, net: nn.Module) -> Iterator[Record]:
            nonlocal worst
            before = [p for n, p in net.named_parameters() if n.endswith("linear.bias")]
            shifts = [p for n, p in net.named_parameters() if n.endswith("norm.bias")]
            if not before:
                return
            largest = max(float(p.grad.abs().max()) for p in before if p.grad is not None)
            scale = max(float(p.grad.abs().max()) for p in shifts if p.grad is not None)
            worst = max(worst, largest / scale)
            if step % 10 == 0:
                yield record("drift", max(float(p.detach().abs().max()) for p in before), step)
            if step == steps - 1:
                yield record("ratio", worst, step)

        rate, adam_rate = float(cell.settings["lr"]), float(cell.settings["adam_lr"])
        optimizer = {
            "sgd": None,
            "momentum": lambda net: torch.optim.SGD(net.parameters(), lr=0.1 * rate, momentum=0.9),
            "adam": lambda net: torch.optim.Adam(net.parameters(), lr=adam_rate),
        }[str(cell.point["optimizer"])]
        return {"watch": watch, "optimizer": optimizer}

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the gradient of the biases; equal runs and drift are claims of their own."""
        yield Contrast(
            last("ratio", "gradient of a bias over that of beta", probe="bias"),
            "bias",
            at={"bits": 64},
            exact_within=1e-12,
            name="gradient",
            says="the gradient of such a bias is zero ({effect} relative to the gradient of beta)",
        )
        yield Contrast(
            Quantity("largest difference of the losses, float64", _apart),
            conditions={"precision": "float64"},
            exact_within=1e-9,
            name="losses",
            says="the losses of both runs agree at every step ({effect})",
            claim="Runs with and without the biases have the same losses.",
        )
        yield Contrast(
            last("drift", "largest bias at the end", probe="bias", logs=True),
            {"optimizer": "adam"},
            {"optimizer": "sgd"},
            at={"arm": "bias", "bits": 32},
            labels=("Adam", "SGD"),
            scale="log-ratio",
            name="drift",
            says="the largest idle bias ends {effect} with Adam than with SGD",
            comparative=("larger", "smaller"),
            claim="In float32 Adam moves the idle biases more than a hundred times as far as SGD.",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the drift of the biases, and the losses of both arms."""
        return [
            self.curves(
                evidence,
                "drift",
                probe="bias",
                at={"bits": 32},
                by="optimizer",
                slug="drift",
                title="Largest bias before batch norm, float32",
                y_title="Largest absolute bias",
                log=True,
                arms=None,
                labels=OPTIMIZERS,
                caption="Gradients of these biases are rounding alone; Adam divides them by their own size.",
            ),
            self.curves(
                evidence,
                "loss",
                at={"bits": 64},
                slug="loss",
                caption=f"The largest difference is {float(_apart(evidence).max()):.1e}.",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate drift and accuracy by optimizer."""
        return [
            self.grid_table(
                [last("drift", "largest bias at the end", probe="bias"), accuracy()],
                evidence,
                rows={"optimizer": list(OPTIMIZERS), "arm": list(self.ARMS)},
                at={"bits": 32},
                title="Biases before batch norm, float32",
                labels=OPTIMIZERS,
            )
        ]


def _kind(cell: Cell) -> torch.dtype:
    return torch.float64 if cell.point["bits"] == 64 else torch.float32


def _apart(evidence: Evidence) -> Any:
    return evidence.loss_difference("bias", "no bias", bits=64)
