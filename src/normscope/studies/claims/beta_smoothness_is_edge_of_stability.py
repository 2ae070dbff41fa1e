"""Is the plateau of the effective smoothness a property of the network, or of the learning rate?"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl
from torch import Tensor, nn

from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Record, Verdict
from normscope.stats import slope_per_seed
from normscope.studies.evidence import Evidence, typical
from normscope.studies.judging import conjunction, equivalent
from normscope.studies.lab import norms
from normscope.studies.lab.arms import network, split_of
from normscope.studies.lab.data import gaussian_regression
from normscope.studies.lab.full_batch import descend
from normscope.studies.lab.models import deep_linear
from normscope.studies.lab.norms import Factory
from normscope.studies.lab.train import half_squares
from normscope.studies.study import AbstractStudy

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

ARMS = {"none": "no norm", "batch": "batch norm"}
#: The deep linear network's further arms: whether its last matrix is normalized is not stated in the source.
LINEAR = {**ARMS, "batch-last": "batch norm, last matrix too", "l1": "l1", "l2": "l2", "linf": "l-infinity"}
_LINEAR_PRESET: Mapping[str, Any] = {
    "protocol": "deep-linear",
    "depth": 25,
    "size": 10,
    "samples": 1000,
    "lrs": [1e-6],
    "steps": 10000,
    "every": 50,
    "relative": [0.01, 1.0, 30.0],
    "absolute": [],
    "plateau": 0.75,
}


class BetaSmoothnessIsEdgeOfStability(AbstractStudy):
    r"""The effective smoothness settles at two over the learning rate, with batch norm or without.

    ## Claim
    The plateau of the effective beta-smoothness that is shown as the mark of batch norm (Santurkar et al. 2018, Figures
    4c and 10c: 20 at a learning rate of 0.1, 2·10⁶ at 10⁻⁶) is :math:`2/\eta`, the edge of stability of gradient
    descent (Cohen et al. 2021): batch norm changes which learning rates can be used, not the curvature reached at one.

    ## Method
    Gradient descent on 500 training images, three tanh layers of 64, half the squared error to the one-hot labels. The
    curvature along the gradient, :math:`g^T H g / g^T g`, is what the effective beta is for small steps; its plateau is
    the geometric mean over the last quarter of the run, at learning rates of .15, .2 and .25. Primary: plateau times
    :math:`\eta/2` is 1 within .2, in either arm, and the two arms' plateaus differ by less than 1.2 times (all must
    hold). Parts: the slope of the log plateau on log :math:`\eta` is -1 within .1, for the curvature and for the
    effective beta with steps in units of the learning rate and with fixed steps; and the share of readings within a
    tenth of the edge. The preset *deep-linear* runs the exact deep linear network of the source (25 matrices of 10x10,
    1000 Gaussian samples, half the sum of squares, learning rate 10⁻⁶, 10 000 steps).

    ## Prediction
    Supported; the networks with batch norm reach the edge earlier, and on the deep linear network those without often
    sit on a flat plateau of the loss, far below the edge: there the second condition fails.

    ## Threats
    The runs were lengthened from 2000 to 3000 steps after a first look, in which not all had reached the edge.
    Full batches: with small batches it is the curvature of the batch's own loss that settles, at or below the same
    value (Andreyev & Beneventano 2024). In the source the smallest step is half a learning rate, and one over it is
    2/eta too, so fixed steps are read as well. Cross-entropy has curvature fall as the loss goes to zero. What other
    authors found is from their abstracts.
    """

    CODE = "beta-smoothness-is-edge-of-stability"
    CARD = 14
    TOPIC = "landscape"
    SOURCES = (
        "Santurkar et al. 2018 (arXiv:1805.11604), Figures 4c, 10c, 12d and 13d",
        "Cohen et al. 2021 (arXiv:2103.00065)",
        "Andreyev & Beneventano 2024 (arXiv:2412.20553)",
    )
    CLAIM = "The plateau of the effective smoothness is two over the learning rate, with batch norm or without."
    ENDPOINT = "Plateau of the curvature along the gradient times half the learning rate"
    MARGIN = 0.2
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "protocol": "network",
            "network": {"name": "mlp", "depth": 3, "width": 64, "activation": "tanh", "gain": 1.0},
            "examples": 500,
            "lrs": [0.15, 0.2, 0.25],
            "steps": 3000,
            "every": 50,
            "relative": [0.5, 1.0, 2.0, 4.0],
            "absolute": [0.1, 0.2, 0.4, 0.8],
            "plateau": 0.75,
            "train": None,
            "test": None,
        },
        "full": {
            "protocol": "network",
            "network": {"name": "vgg-a", "width": 16},
            "examples": 5000,
            "lrs": [0.02, 0.05, 0.1, 0.2],
            "steps": 5000,
            "every": 25,
            "relative": [0.5, 1.0, 2.0, 4.0],
            "absolute": [0.05, 0.1, 0.2, 0.4],
            "plateau": 0.75,
            "train": None,
            "test": None,
        },
        "deep-linear": _LINEAR_PRESET,
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every arm at every learning rate."""
        for rate in settings["lrs"]:
            for arm in _arms(settings):
                yield arm, {"lr": rate}

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Descend with one arm, and read the curvature on the way."""
        settings = cell.settings
        if settings["protocol"] == "deep-linear":
            yield from run_deep_linear(cell, device)
            return
        split = split_of(cell, data, device)
        count = int(settings["examples"])
        x, y = split.x_train[:count], split.y_train[:count]
        targets = nn.functional.one_hot(y, data.classes).to(x.dtype)
        model = network(cell, data, factory_of(cell.arm), device)
        yield from descend(model, x, targets, _half_square, cell=cell, lr=float(cell.point["lr"]), **_options(cell))

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge both arms' plateaus and their ratio together; slopes and the share of time at the edge are parts."""
        relative = {arm: np.mean([_plateau(evidence, arm, r) * r / 2 for r in _rates(evidence)], 0) for arm in ARMS}
        conditions = [
            equivalent(
                self,
                evidence,
                relative[arm] - 1,
                0.2,
                claim=f"Its plateau is two over the learning rate: {words}.",
                endpoint=f"{self.ENDPOINT}, less one, {words}",
                reason=f"{typical(relative[arm])} with {words}.",
            )
            for arm, words in ARMS.items()
        ]
        ratio = np.log(relative["batch"]) - np.log(relative["none"])
        conditions.append(
            equivalent(
                self,
                evidence,
                ratio,
                math.log(1.2),
                claim="At the same learning rate the plateau is as high with batch norm as without.",
                endpoint="Plateau with batch norm over without",
                reason=f"Their ratio is {typical(ratio, logs=True)}.",
                scale="log-ratio",
            )
        )
        outcome, p, decisive = conjunction(conditions, 1 - evidence.level)
        parts = [*conditions, *self._slopes(evidence), self._sooner(evidence)]
        return self.verdict(
            outcome,
            decisive.effect,
            margin=decisive.margin,
            reason=f"Times half the learning rate: {' '.join(part.reason for part in conditions)} "
            + self._by_rate(evidence),
            p_value=p,
            primary=True,
            parts=parts,
        )

    def _by_rate(self, evidence: Evidence) -> str:
        told = (
            f"{words}: "
            + ", ".join(f"{typical(_plateau(evidence, arm, rate) * rate / 2)} at {rate:g}" for rate in _rates(evidence))
            for arm, words in ARMS.items()
        )
        return f"By learning rate, {'; '.join(told)}."

    def _slopes(self, evidence: Evidence) -> Iterable[Verdict]:
        rates = _rates(evidence)
        if len(rates) < 2:
            return
        words = {
            "sharpness": "curvature along the gradient",
            "beta_relative": "effective beta, steps in units of the learning rate",
            "beta_absolute": "effective beta, steps fixed",
        }
        for name, said in words.items():
            for arm, label in ARMS.items():
                logs = np.log([_plateau(evidence, arm, rate, name) for rate in rates]).T
                slopes = np.full(len(logs), np.nan)
                whole = np.isfinite(logs).all(1)
                if whole.any():
                    slopes[whole] = slope_per_seed(np.log(rates), logs[whole])
                yield equivalent(
                    self,
                    evidence,
                    slopes + 1,
                    0.1,
                    claim=f"The plateau is in inverse proportion to the learning rate: {said}, {label}.",
                    endpoint=f"Slope of the log plateau on the log learning rate, plus one: {said}, {label}",
                    reason=f"Slope {typical(slopes)}.",
                )

    def _sooner(self, evidence: Evidence) -> Verdict:
        share = {arm: np.mean([_at_edge(evidence, arm, rate) for rate in _rates(evidence)], 0) for arm in ARMS}
        return self.part(
            evidence,
            share["batch"] - share["none"],
            margin=0.0,
            claim="With batch norm more of the training is spent at the edge of stability.",
            endpoint="Share of readings within a tenth of the edge, with batch norm less without",
            reason=f"{typical(share['batch'])} with, {typical(share['none'])} without.",
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the curvature on its way to the edge, and the loss."""
        rate = _rates(evidence)[0]
        labels = {arm: LINEAR[arm] for arm in _arms(evidence.settings)}
        ends = "; ".join(
            f"{words} {typical(_plateau(evidence, arm, rate) * rate / 2)}" for arm, words in labels.items()
        )
        edge = evidence.select(probe="descent", name="sharpness", lr=rate).with_columns(
            value=pl.col("value") * rate / 2
        )
        return [
            curves(
                edge,
                y="sharpness",
                slug="edge",
                title=f"Curvature along the gradient, in units of two over the learning rate ({rate:g})",
                y_title="Curvature times half the learning rate",
                log=False,
                labels=labels,
                caption=f"Over the last quarter: {ends}. One is the edge of stability.",
            ),
            curves(
                evidence.select(probe="descent", name="loss", lr=rate),
                y="loss",
                slug="loss",
                title=f"Loss, learning rate {rate:g}",
                y_title="Loss",
                log=True,
                labels=labels,
                caption="At the end: "
                + "; ".join(
                    f"{words} {typical(evidence.last('loss', probe='descent', arm=arm, lr=rate))}"
                    for arm, words in labels.items()
                )
                + ".",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate plateaus against theory."""
        rows = tuple(
            (
                f"{rate:g}",
                LINEAR[arm],
                typical(_plateau(evidence, arm, rate)),
                f"{2 / rate:g}",
                typical(_plateau(evidence, arm, rate) * rate / 2),
                typical(_at_edge(evidence, arm, rate)),
                typical(evidence.last("loss", probe="descent", arm=arm, lr=rate)),
                int(np.nansum(evidence.last("diverged", probe="descent", arm=arm, lr=rate))),
            )
            for rate in _rates(evidence)
            for arm in _arms(evidence.settings)
        )
        columns = ("Learning rate", "Arm", "Plateau", "Theory", "Ratio", "Share at the edge", "Loss", "Diverged")
        return [Table("Plateau of the curvature along the gradient", columns, rows)]


def factory_of(arm: str) -> Factory:
    """Return the norm of an arm of this study."""
    orders = {"l1": 1.0, "l2": 2.0, "linf": math.inf}
    if arm in orders:
        return norms.lp(orders[arm])
    return norms.none() if arm == "none" else norms.batch()


def run_deep_linear(cell: Cell, device: str) -> Iterable[Record]:
    """Descend on the deep linear network of Santurkar et al. 2018, A.1, as the cell's settings say."""
    settings = cell.settings
    split = gaussian_regression(cell.seed, samples=int(settings["samples"]), size=int(settings["size"])).to(device)
    model = deep_linear(
        norm=factory_of(cell.arm),
        seed=cell.seed,
        depth=int(settings["depth"]),
        size=int(settings["size"]),
        last=cell.arm == "batch-last",
    )
    model = model.to(device).train()
    x, targets = split.x_train, split.y_train
    yield from descend(model, x, targets, half_squares, cell=cell, lr=float(cell.point["lr"]), **_options(cell))


def _options(cell: Cell) -> dict[str, Any]:
    return {name: cell.settings[name] for name in ("steps", "every", "relative", "absolute")}


def _half_square(outputs: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * (outputs - targets).square().sum(1).mean()


def _arms(settings: Mapping[str, Any]) -> Mapping[str, str]:
    return LINEAR if settings["protocol"] == "deep-linear" else ARMS


def _rates(evidence: Evidence) -> list[float]:
    return list(evidence.settings["lrs"])


def _plateau(evidence: Evidence, arm: str, rate: float, name: str = "sharpness") -> np.ndarray:
    """Return per seed the geometric mean of a curvature over the last part of a run; NaN for one that diverged."""
    settings = evidence.settings
    frame = evidence.select(probe="descent", name=name, arm=arm, lr=rate)
    late = frame.filter(pl.col("step") >= settings["plateau"] * settings["steps"])
    mean: np.ndarray = np.exp(evidence.mean_log(late))
    return np.where(evidence.last("diverged", probe="descent", arm=arm, lr=rate) > 0, np.nan, mean)


def _at_edge(evidence: Evidence, arm: str, rate: float) -> np.ndarray:
    frame = evidence.select(probe="descent", name="sharpness", arm=arm, lr=rate)
    return evidence.per_seed(frame, ((pl.col("value") * rate / 2 - 1).abs() < 0.1).mean())
