"""How far initial weights may be off, with batch norm and without."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.stats import extent
from normscope.studies import AbstractTraining, Arm, Contrast, Evidence, Quantity, accuracy, last, presets, steps_to
from normscope.studies.evidence import Arrivals
from normscope.studies.lab import norms
from normscope.studies.lab.arms import batch_norm, network, recorder, split_of
from normscope.studies.lab.data import Dataset
from normscope.studies.lab.train import batch_indices

TARGET = 0.9


class InitTolerance(AbstractTraining):
    r"""Batch norm makes networks insensitive to the scale of their initial weights.

    ## Claim
    Batch norm makes networks insensitive to parameter initialisation (article on batch norm; Ioffe & Szegedy 2015,
    abstract; cs231n notes, "significantly more robust to bad initialization").

    ## Method
    Dense networks of five hidden layers of 64, weights 0.01 to 100 times He's, learning rate 0.1. Insensitive to the
    scale means here: the accuracy at the end of training hardly depends on it. The headline is the range of scales over
    which a seed ends with at least 95 % of the best training accuracy of its arm, largest over smallest scale,
    interpolated between the scales of the grid, with over without batch norm. A range that reaches the end of the grid
    is a bound. The strong form, that training does not change at all, is a claim of its own: steps to 90 % of the way
    to the best accuracy differ at most twice between scales of 0.1 and 10 at the same learning rate. And the exact
    law: weights before norms times c with a learning rate times c^2 on them give the same losses (float64, eps near 0,
    below 1e-6).

    ## Prediction
    The weak form holds by a factor of a thousand or more; the strong form fails, since the learning rate that the
    function sees is eta/c^2; the law exact.

    ## Threats
    Only the scale is varied: bad directions (equal rows, rank deficiency) are not repaired by batch norm. Between
    scales of the grid, which lie three to ten times apart, the accuracy is taken to change on a line. Torch's eps
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
    CLAIM = "Batch norm makes the final accuracy insensitive to the scale of the initial weights."
    ON_A_CASE = "all arms of a comparison begin from the initial weights of the set-up"
    ENDPOINT = "Range of usable scales of the initial weights, largest over smallest, with over without batch norm"
    MARGIN = math.log(5)
    MARGIN_REASON = "twice the factor 2.4 between He's initial weights and torch's default"
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
        """Yield the width of the usable range; the strong form and the law are claims of their own."""
        yield Contrast(
            Quantity("range of usable scales, largest over smallest", _range, logs=True),
            "batch",
            "none",
            scale="log-ratio",
            name="range",
            says="the range of usable scales is {effect} with batch norm",
            comparative=("wider", "narrower"),
        )
        yield Contrast(
            Quantity(f"slowest over fastest steps to {100 * TARGET:g} %", _spread, logs=True),
            "batch",
            scale="log-ratio",
            equal_within=math.log(2),
            margin_reason="twice the steps, which the seeds of one scale differ by too",
            claim="With batch norm training is as fast whatever the scale of the initial weights.",
            name="speed",
            endpoint=f"Steps to {100 * TARGET:g} % of the way to the best accuracy, slowest over fastest scale",
            says=f"from the fastest to the slowest scale of 0.1 to 10 the steps grow {_at_least(evidence)}{{effect}}",
        )
        yield Contrast(
            last("difference", "largest relative difference of the losses", probe="law"),
            exact_within=1e-6,
            claim="Scaling weights by c and their learning rate by c squared changes no loss.",
            name="law",
            endpoint="Largest relative difference of the losses, c of 0.1, 10 and 100, float64",
            says="the losses stay the same, {effect}",
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
                [Quantity("training accuracy", _end), steps_to(TARGET), accuracy()],
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
    """Return per seed the log ratio of the slowest to the fastest steps to one target; NaN where it is only bounded.

    A scale that never gets there counts with the length of a run, which bounds the ratio from below: that says enough
    where the bound is above 2 already.
    """
    steps, missed = _inner_steps(evidence, arm)
    spread = np.log(steps.max(0)) - np.log(steps.min(0))
    return np.where(missed.any(0) & (spread <= math.log(2)), np.nan, spread)


def _at_least(evidence: Evidence) -> str:
    """Return the words for a spread that is a bound, for some run ended before the target; empty if none did."""
    return "at least " if _inner_steps(evidence, "batch")[1].any() else ""


def _inner_steps(evidence: Evidence, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Return steps to one target and which runs missed it, a row for each scale of 0.1 to 10."""
    target = evidence.target(TARGET)
    inner = [scale for scale in evidence.settings["scales"] if 0.1 <= scale <= 10]
    arrivals = [evidence.arrivals(target, arm=arm, scale=scale) for scale in inner]
    return np.array([each.steps for each in arrivals]), np.array([each.missed for each in arrivals])


def _range(evidence: Evidence, arm: str) -> Arrivals:
    """Return per seed the log of the largest over the smallest usable scale; censored at the ends of the grid."""
    scales = sorted(evidence.settings["scales"])
    ends = np.array([_end(evidence, arm=arm, scale=scale) for scale in scales])
    found = [extent(scales, seed, 0.95) for seed in ends.T]
    learnt = ends.max(0) > max(evidence.floor, 0.0)
    widths = np.where(learnt, [each.high - each.low for each in found], np.nan)
    beyond = np.array([each.below or each.above for each in found])
    return Arrivals(widths, learnt & beyond, math.log(scales[-1] / scales[0]))


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
