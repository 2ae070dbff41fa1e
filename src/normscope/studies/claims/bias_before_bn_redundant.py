"""A bias in front of batch norm: does it do anything?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Record, Verdict
from normscope.studies.evidence import Evidence, typical
from normscope.studies.figures import accuracy, apart
from normscope.studies.judging import exact, with_parts
from normscope.studies.lab.arms import batch_norm, fit, network, one, split_of
from normscope.studies.study import AbstractStudy

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

ARMS = {"bias": "with biases before batch norm", "no bias": "without"}
OPTIMIZERS = {"sgd": "SGD", "momentum": "SGD with momentum", "adam": "Adam"}


class BiasBeforeBnRedundant(AbstractStudy):
    r"""A bias before batch norm is cancelled by it and can be left out.

    ## Claim
    The bias of the layer before batch norm is cancelled by the subtraction of the mean; beta plays its role (answer to
    "What is the effect of batch normalization on the gradient?"; Ioffe & Szegedy 2015, section 3.2; Goodfellow et al.
    2016, section 8.7.1).

    ## Method
    Dense networks of three hidden layers of 100 with and without those biases, same weights and batches. In float64:
    the largest gradient of such a bias over the largest gradient of a beta, over all layers and steps (primary: below
    1e-12 in every seed), and the largest difference between the losses of the two runs (below 1e-9). In float32: how
    far the biases drift under SGD, SGD with momentum and Adam, and whether evaluation differs.

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
    ENDPOINT = "Gradient of a bias before batch norm over the gradient of beta, largest of layers and steps, float64"
    MARGIN = 0.0
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 3, "width": 100},
            "batch": 64,
            "lr": 0.1,
            "adam_lr": 0.001,
            "steps": 300,
            "train": None,
            "test": None,
        },
        "full": {
            "network": {"name": "mlp", "depth": 8, "width": 512},
            "batch": 128,
            "lr": 0.1,
            "adam_lr": 0.001,
            "steps": 15000,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield both arms with SGD in float64, and with every optimizer in float32."""
        for arm in ARMS:
            yield arm, {"optimizer": "sgd", "bits": 64}
            for optimizer in OPTIMIZERS:
                yield arm, {"optimizer": optimizer, "bits": 32}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Train one arm and watch the gradients of biases before norms."""
        kind = torch.float64 if cell.point["bits"] == 64 else torch.float32
        model = network(cell, data, batch_norm(dtype=kind), device, bias=cell.arm == "bias").to(kind)
        split = split_of(cell, data, device)
        split = type(split)(
            split.x_train.to(kind),
            split.y_train,
            split.x_val.to(kind),
            split.y_val,
            split.x_test.to(kind),
            split.y_test,
        )
        note, steps = one(cell, "bias"), int(cell.settings["steps"])
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
                yield note("drift", max(float(p.detach().abs().max()) for p in before), step)
            if step == steps - 1:
                yield note("ratio", worst, step)

        rate = float(cell.settings["adam_lr"])
        make = {
            "sgd": None,
            "momentum": lambda net: torch.optim.SGD(net.parameters(), lr=0.1 * cell.settings["lr"], momentum=0.9),
            "adam": lambda net: torch.optim.Adam(net.parameters(), lr=rate),
        }[str(cell.point["optimizer"])]
        return fit(model, split, cell, watch=watch, optimizer=make)

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the gradient; equal runs, drift and evaluation are parts."""
        primary = exact(
            self, evidence, _seen(evidence, "ratio"), 1e-12, claim=self.CLAIM, endpoint=self.ENDPOINT, primary=True
        )
        parts = [
            exact(
                self,
                evidence,
                _apart(evidence),
                1e-9,
                claim="Runs with and without the biases have the same losses.",
                endpoint="Largest difference of the losses, float64",
            )
        ]
        drifts = {name: np.log(_seen(evidence, "drift", optimizer=name, bits=32)) for name in OPTIMIZERS}
        parts.append(
            self.part(
                evidence,
                drifts["adam"] - drifts["sgd"],
                scale="log-ratio",
                margin=math.log(100),
                claim="In float32 Adam moves the idle biases more than a hundred times as far as SGD.",
                endpoint="Largest bias at the end, Adam over SGD, float32",
                reason=", ".join(f"{typical(drifts[name], logs=True)} with {OPTIMIZERS[name]}" for name in OPTIMIZERS)
                + ".",
            )
        )
        return with_parts(primary, parts, parts[-1].reason)

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the drift of the biases."""
        return [
            curves(
                evidence.select(probe="bias", name="drift", bits=32),
                y="drift",
                by="optimizer",
                slug="drift",
                title="Largest bias before batch norm, float32",
                y_title="Largest absolute bias",
                log=True,
                labels=OPTIMIZERS,
                caption="Gradients of these biases are rounding alone; Adam divides them by their own size.",
            ),
            curves(
                evidence.select(probe="training", bits=64),
                y="loss",
                slug="loss",
                title="Training loss with and without biases, float64",
                y_title="Cross-entropy of the step's batch",
                log=True,
                labels=ARMS,
                caption=f"The largest difference is {float(np.nanmax(_apart(evidence))):.1e}.",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate drift and accuracy by optimizer."""
        rows = tuple(
            (
                words,
                f"{float(np.nanmean(_seen(evidence, 'drift', optimizer=name, bits=32))):.1e}",
                *(typical(accuracy(evidence, arm, optimizer=name, bits=32)) for arm in ARMS),
            )
            for name, words in OPTIMIZERS.items()
        )
        columns = ("Optimizer", "Largest bias at the end", "Test accuracy with biases", "without")
        return [Table("Biases before batch norm, float32", columns, rows)]


def _seen(evidence: Evidence, name: str, **where: Any) -> np.ndarray:
    where = where or {"bits": 64}
    return evidence.last(name, probe="bias", arm="bias", **where)


def _apart(evidence: Evidence) -> np.ndarray:
    return apart(evidence, *ARMS, bits=64)
