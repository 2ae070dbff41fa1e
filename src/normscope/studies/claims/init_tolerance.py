"""How far initial weights may be off, with batch norm and without."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.studies import AbstractTraining, Arm, Contrast, Evidence, Quantity, accuracy, last, presets, steps_to
from normscope.studies.lab import norms
from normscope.studies.lab.arms import batch_norm, network, recorder, split_of
from normscope.studies.lab.data import Dataset
from normscope.studies.lab.train import batch_indices


class InitTolerance(AbstractTraining):
    r"""Batch norm makes networks insensitive to the scale of their initial weights.

    ## Claim
    Batch norm makes networks insensitive to parameter initialisation (article on batch norm; Ioffe & Szegedy 2015,
    abstract; cs231n notes, "significantly more robust to bad initialization").

    ## Method
    Dense networks of five hidden layers of 64, weights 0.01 to 100 times He's, learning rate 0.1. Primary: decades of
    the scale over which a seed ends with at least 95 % of the best training accuracy of its arm, with less without
    batch norm; supported above one decade. The strong form, that nothing changes: refuted if steps to 90 % differ by
    more than twice between scales of 0.1 and 10 at the same learning rate. And the exact law: weights before norms
    times c with a learning rate times c^2 on them give the same losses (float64, eps near 0, below 1e-6).

    ## Prediction
    The weak form supported by three decades or more; the strong form refuted, since the learning rate that the function
    sees is eta/c^2; the law exact.

    ## Threats
    Only the scale is varied: bad directions (equal rows, rank deficiency) are not repaired by batch norm. Torch's eps
    breaks the law where c times sigma falls below its root.
    """

    CODE = "init-tolerance"
    CARD = 19
    TOPIC = "initialization"
    SOURCES = (
        "Article on batch norm, list of benefits",
        "Ioffe & Szegedy 2015 (arXiv:1502.03167), abstract and section 3.3",
        "CS231n course notes, batch normalization",
    )
    CLAIM = "Batch norm makes networks insensitive to the scale of the initial weights."
    ENDPOINT = "Decades of the scale of the initial weights that are usable, with less without batch norm"
    MARGIN = 1.0
    VERSION = 2
    ARMS = {"none": Arm("no batch norm", norms.none()), "batch": Arm("batch norm", norms.batch())}
    POINTS = {"scale": "scales"}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 5, "width": 64},
            "batch": 64,
            "scales": [0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0],
            "lr": 0.1,
            "steps": 200,
            "law_steps": 60,
            "train": None,
            "test": None,
        },
        full={"network": {"name": "mlp", "depth": 10, "width": 256}, "batch": 128, "steps": 15000},
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield both arms at every scale, and the law."""
        yield from super().grid(settings)
        yield "law", {"scale": 1.0}

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return the variance of the initial weights, times the number of inputs: He's is two."""
        return {"gain": 2 * float(cell.point["scale"]) ** 2}

    def trains(self, cell: Cell) -> bool:
        """All but the law, which trains twins."""
        return cell.arm != "law"

    def run_cell(self, cell: Cell, data: Dataset, device: str) -> Iterable[Record]:
        """Train one arm, or two twins for the law."""
        return super().run_cell(cell, data, device) if self.trains(cell) else _law(cell, data, device)

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the width of the usable range; the strong form and the law are parts."""
        yield Contrast(Quantity("decades of the scale that are usable", _decades), "batch", "none")
        spread = Quantity("log ratio of the slowest to the fastest steps to 90 %", _spread, logs=True)
        yield Contrast(
            spread,
            math.log(2),
            "batch",
            scale="value",
            margin=0.0,
            claim="With batch norm training is as fast whatever the scale of the initial weights.",
            endpoint="Log 2 less the log ratio of the slowest to the fastest steps to 90 %, scales 0.1 to 10",
            reason=f"Steps to 90 % differ by {spread.text(evidence, arm='batch')} times between scales of 0.1 and 10.",
            in_headline=True,
        )
        yield Contrast(
            last("difference", "largest relative difference of the losses", probe="law"),
            exact_within=1e-6,
            claim="Scaling weights by c and their learning rate by c squared changes no loss.",
            endpoint="Largest relative difference of the losses, c of 0.1, 10 and 100, float64",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw accuracy by scale, and the losses at ten times He's."""
        end = Quantity("", _end)
        ends = (
            f"{words}: " + ", ".join(end.text(evidence, arm=arm, scale=scale) for scale in evidence.settings["scales"])
            for arm, words in self.wording.arms.items()
        )
        return [
            self.curves(
                evidence,
                "test_accuracy",
                x="scale",
                slug="by-scale",
                title="Test accuracy by scale of the initial weights",
                x_title="Initial weights, in units of He's",
                log_x=True,
                caption=f"Training accuracy at the end, from the smallest scale: {'; '.join(ends)}; 0 where it "
                "diverged.",
            ),
            self.curves(evidence, "loss", at={"scale": 10.0}, slug="loss"),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate accuracy and steps by scale."""
        return [
            self.grid_table(
                [Quantity("training accuracy", _end), steps_to(0.9), accuracy()],
                evidence,
                rows={"scale": evidence.settings["scales"], "arm": list(self.ARMS)},
                title="By scale of the initial weights",
                heads={"scale": "Times He's"},
            )
        ]


def _end(evidence: Evidence, **where: Any) -> np.ndarray:
    """Return the training accuracy at the end; a run that diverged has none right."""
    ends = np.nan_to_num(evidence.final("accuracy", **where))
    return np.where(evidence.last("diverged", **where) > 0, 0.0, ends)


def _spread(evidence: Evidence, arm: str) -> np.ndarray:
    inner = [scale for scale in evidence.settings["scales"] if 0.1 <= scale <= 10]
    steps = np.array([steps_to(0.9)(evidence, arm=arm, scale=scale) for scale in inner])
    spread: np.ndarray = np.log(steps.max(0)) - np.log(steps.min(0))
    return spread


def _decades(evidence: Evidence, arm: str) -> np.ndarray:
    """Return per seed the longest run of scales around the best that are usable, in decades."""
    scales = sorted(evidence.settings["scales"])
    ends = np.array([_end(evidence, arm=arm, scale=scale) for scale in scales])
    decades = []
    for column in ends.T:
        fine = column >= 0.95 * column.max()
        low = high = int(column.argmax())
        while low > 0 and fine[low - 1]:
            low -= 1
        while high < len(scales) - 1 and fine[high + 1]:
            high += 1
        decades.append(math.log10(scales[high] / scales[low]))
    return np.array(decades)


def _law(cell: Cell, data: Dataset, device: str) -> Iterator[Record]:
    """Train twins whose weights before norms are c times as large, with c^2 times the learning rate on them."""
    split = split_of(cell, data, device)
    rate, steps = float(cell.settings["lr"]), int(cell.settings["law_steps"])
    x, y = split.x_train.double(), split.y_train

    def losses(c: float) -> np.ndarray:
        model = network(cell, data, batch_norm(eps=1e-30, dtype=torch.float64), device).double()
        weights = [p for n, p in model.named_parameters() if "linear.weight" in n]
        rest = [p for n, p in model.named_parameters() if "linear.weight" not in n]
        with torch.no_grad():
            for weight in weights:
                weight.mul_(c)
        groups: list[dict[str, Any]] = [{"params": weights, "lr": rate * c * c}, {"params": rest}]
        optimizer = torch.optim.SGD(groups, lr=rate)
        found = []
        for part in batch_indices(len(y), int(cell.settings["batch"]), steps, cell.seed):
            optimizer.zero_grad()
            loss = cross_entropy(model(x[part]), y[part])
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        return np.array(found)

    base = losses(1.0)
    worst = max(float((np.abs(losses(c) - base) / base).max()) for c in (0.1, 10.0, 100.0))
    yield recorder(cell, "law")("difference", worst)
