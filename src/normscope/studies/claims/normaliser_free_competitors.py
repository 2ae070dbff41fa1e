"""Do initialisations for residual networks without norms bring what batch norm brings?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from torch import nn

from normscope.builders import SCHEMES, ResidualNet, residual_cnn, residual_mlp, scalar_groups
from normscope.plots import Figure, Table, curves
from normscope.records import Cell, Record, Verdict
from normscope.studies.evidence import Evidence, typical
from normscope.studies.figures import accuracy, loss_figure, reached
from normscope.studies.judging import best_rate, conjunction, equivalent
from normscope.studies.lab.arms import first_batch, recorder
from normscope.studies.lab.streams import stream
from normscope.studies.training import AbstractTraining

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset, Split

ARMS = {
    "none": "He's weights alone",
    "batch": "batch norm",
    "layer": "layer norm",
    "group": "group norm",
    "fixup": "Fixup",
    "skipinit": "SkipInit",
    "rezero": "ReZero",
    "nf": "normalizer-free",
}
FREE = ("fixup", "skipinit", "rezero", "nf")


class NormaliserFreeCompetitors(AbstractTraining):
    r"""What batch norm brings to a residual network, an initialisation brings too.

    ## Claim
    None of batch norm's benefits is unique to normalization: in residual networks it works by making the branches small
    at initialization, which Fixup, SkipInit, ReZero and normalizer-free networks do without (comment on the Q&A, with
    Zhang et al. 2019).

    ## Method
    Fully connected residual networks of 8 blocks of width 64, three learning rates (smaller ones for He's weights
    alone), each arm at its own best one by
    validation loss (all: the same weights up to scale; Fixup's scalars learn at a tenth). Primary: per competitor, the
    share of batch norm's gain in mean training accuracy over the run, against He's weights alone, that it recovers;
    supported if above .8 for at least one of them, judged on the one that is best on validation data. Its test accuracy
    is to be within a point of batch norm's as well (both must hold). Parts: the same share for each competitor, and the
    mean square of the stream after each block at initialization against theory, :math:`l + 1` with norms,
    :math:`2^l` without, 1 for the zero-initialized, :math:`1 + .04\,l` normalizer-free.

    ## Prediction
    The speed is recovered; the accuracy in part, as batch norm also regularizes. Plain networks without skips are not
    covered.

    ## Threats
    Depth and learning rates were set after a first look at 16 blocks, which He's weights alone did not train.
    Where He's weights alone train as well, there is no gain to share, and a seed without gain is left out. The mean
    accuracy over the run stands for speed, since steps to a target are censored for the arm that never gets there. The
    best of several competitors is chosen on validation data, whose noise favours the luckiest one. SkipInit's and
    Fixup's published results are from their papers' code and abstracts.
    """

    CODE = "normaliser-free-competitors"
    CARD = 27
    TOPIC = "initialization"
    SOURCES = (
        "Q&A on the layer, comment on initialization",
        "Zhang, Dauphin and Ma 2019 (arXiv:1901.09321)",
        "De & Smith 2020 (arXiv:2002.10444)",
        "Bachlechner et al. 2020 (arXiv:2003.04887)",
        "Brock, De and Smith 2021 (arXiv:2101.08692)",
    )
    CLAIM = "An initialisation for residual networks brings what batch norm brings."
    ENDPOINT = "Share of batch norm's gain in training accuracy over the run that the best competitor recovers"
    MARGIN = 0.8
    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "network": {"name": "mlp", "depth": 8, "width": 64},
            "batch": 64,
            "lrs": [0.01, 0.03, 0.1],
            "plain_lrs": [0.0003, 0.001, 0.01],
            "steps": 150,
            "train": None,
            "test": None,
        },
        "full": {
            "network": {"name": "cnn", "depth": 54, "width": 16},
            "batch": 128,
            "lrs": [0.01, 0.03, 0.1, 0.3],
            "plain_lrs": [0.00001, 0.0001, 0.001, 0.01],
            "steps": 30000,
            "train": None,
            "test": None,
        },
    }

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every scheme at every learning rate; He's weights alone at smaller ones: their gradients are huge."""
        for arm in ARMS:
            for rate in settings["plain_lrs" if arm == "none" else "lrs"]:
                yield arm, {"lr": rate}

    def network(self, cell: Cell, data: "Dataset", device: str) -> nn.Module:
        """Return the network of an arm."""
        sizes = cell.settings["network"]
        seed = stream(cell.seed, "init")
        model: nn.Module
        if sizes["name"] == "cnn":
            model = residual_cnn(
                sizes["depth"], sizes["width"], channels=data.shape[0], outputs=data.classes, scheme=cell.arm, seed=seed
            )
        else:
            inputs = math.prod(data.shape)
            model = residual_mlp(
                sizes["depth"], sizes["width"], inputs=inputs, outputs=data.classes, scheme=cell.arm, seed=seed
            )
        return model.to(device).train()

    def trains(self, cell: Cell) -> bool:
        """All but those with many scalars or standardized weights, which are not made faster by company."""
        return cell.arm not in ("fixup", "nf")

    def options(self, cell: Cell) -> dict[str, Any]:
        """Let Fixup's scalars learn at a rate of their own."""
        rate = float(cell.point["lr"])

        def optimizer(net: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.SGD(scalar_groups(net, rate) if cell.arm == "fixup" else net.parameters(), lr=rate)

        return {"optimizer": optimizer}

    def before(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Look at the stream at initialization."""
        return _signal(cell, cast(ResidualNet, model), first_batch(split, cell, 512)[0])

    def judge(self, evidence: Evidence) -> Verdict:
        """Judge the best competitor's speed and accuracy together; each competitor and the theory are parts."""
        rates = {arm: best_rate(evidence, arm) for arm in ARMS}

        def validated(arm: str) -> float:
            values = evidence.last("val_loss", arm=arm, lr=rates[arm])
            return float(np.nanmean(values)) if np.isfinite(values).any() else math.inf

        best = min(FREE, key=validated)
        speed = self._recovered(evidence, best, rates)
        ends = {arm: accuracy(evidence, arm, lr=rates[arm]) for arm in ARMS}
        close = equivalent(
            self,
            evidence,
            ends[best] - ends["batch"],
            0.01,
            claim=f"{ARMS[best]} ends with batch norm's test accuracy, within a point.",
            endpoint=f"Test accuracy with {ARMS[best]} less with batch norm, own best learning rates",
            reason=f"Test accuracy {typical(ends[best])} with {ARMS[best]}, {typical(ends['batch'])} with batch norm.",
        )
        outcome, p, decisive = conjunction([speed, close], 1 - evidence.level)
        others = [self._recovered(evidence, arm, rates) for arm in (*FREE, "layer", "group") if arm != best]
        return self.verdict(
            outcome,
            decisive.effect,
            margin=decisive.margin,
            reason=f"{speed.reason} {close.reason}",
            p_value=p,
            primary=True,
            parts=[speed, close, *others, *self._theory(evidence)],
        )

    def _recovered(self, evidence: Evidence, arm: str, rates: Mapping[str, float]) -> Verdict:
        mean = {one_arm: _area(evidence, one_arm, rates[one_arm]) for one_arm in ("none", "batch", arm)}
        gain = mean["batch"] - mean["none"]
        share = np.where(gain > 0.01, (mean[arm] - mean["none"]) / np.where(gain > 0.01, gain, 1.0), np.nan)
        return self.part(
            evidence,
            share,
            scale="value",
            claim=f"{ARMS[arm]} recovers batch norm's gain in speed.",
            endpoint=f"Share of batch norm's gain in mean training accuracy that {ARMS[arm]} recovers",
            reason=f"Mean training accuracy over the run {typical(mean[arm])} with {ARMS[arm]}, "
            f"{typical(mean['batch'])} with batch norm, {typical(mean['none'])} with neither.",
        )

    def _theory(self, evidence: Evidence) -> Iterator[Verdict]:
        depth = int(evidence.settings["network"]["depth"])
        for arm, words in ARMS.items():
            measured = np.log(_stream(evidence, arm, depth))
            expected = math.log(SCHEMES[arm].signal(depth, SCHEMES[arm].alpha or 0.0))
            yield equivalent(
                self,
                evidence,
                measured - expected,
                math.log(1.5),
                claim=f"The stream's mean square at initialization is that of theory: {words}.",
                endpoint=f"Mean square of the stream after {depth} blocks, over theory: {words}",
                reason=f"{typical(measured, logs=True)} measured, {math.exp(expected):.4g} in theory.",
                scale="log-ratio",
            )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the loss at a common learning rate, and the stream."""
        rate = sorted(evidence.settings["lrs"])[len(evidence.settings["lrs"]) // 2]
        depth = int(evidence.settings["network"]["depth"])
        return [
            loss_figure(evidence, ARMS, f"Training loss at learning rate {rate:g}", lr=rate),
            curves(
                evidence.select(probe="signal", name="mean_square"),
                y="mean_square",
                slug="stream",
                title="Mean square of the stream at initialization",
                x_title="Blocks",
                y_title="Mean square, the stem's being one",
                log=True,
                labels=ARMS,
                caption=f"After {depth} blocks: "
                + "; ".join(f"{words} {typical(_stream(evidence, arm, depth))}" for arm, words in ARMS.items()),
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the arms at their own best learning rates, and the stream against theory."""
        rows, streams = [], []
        depth = int(evidence.settings["network"]["depth"])
        for arm, words in ARMS.items():
            lr = best_rate(evidence, arm)
            steps, censored = reached(evidence, arm, 0.9, lr=lr)
            rows.append(
                (
                    words,
                    f"{lr:g}",
                    typical(steps),
                    censored,
                    typical(_area(evidence, arm, lr)),
                    typical(accuracy(evidence, arm, lr=lr)),
                )
            )
            found = float(np.mean(_stream(evidence, arm, depth)))
            theory = SCHEMES[arm].signal(depth, SCHEMES[arm].alpha or 0.0)
            streams.append((words, f"{found:.4g}", f"{theory:.4g}", f"{found / theory:.3f}"))
        columns = (
            "Scheme",
            "Own best learning rate",
            "Steps to 90 %",
            "Never",
            "Mean training accuracy",
            "Test accuracy",
        )
        return [
            Table("Schemes at their own best learning rate", columns, tuple(rows)),
            Table(f"Stream after {depth} blocks", ("Scheme", "Measured", "Theory", "Ratio"), tuple(streams)),
        ]


def _area(evidence: Evidence, arm: str, lr: float) -> np.ndarray:
    """Return per seed the mean training accuracy over the steps asked for; steps after a divergence count as 0."""
    import polars as pl

    frame = evidence.select(probe="training", name="accuracy", arm=arm, lr=lr)
    return evidence.per_seed(frame, pl.col("value").fill_nan(0.0).sum() / int(evidence.settings["steps"]))


def _stream(evidence: Evidence, arm: str, block: int) -> np.ndarray:
    frame = evidence.select(probe="signal", name="mean_square", arm=arm, step=block)
    return evidence.per_seed(frame)


def _signal(cell: Cell, model: ResidualNet, x: torch.Tensor) -> Iterator[Record]:
    """Record the stream's mean square after each block, the stem's taken for one; ``step`` counts blocks."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        sizes = [float(part.square().mean()) for part in model.stream(x)]
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    for block, size in enumerate(sizes):
        yield recorder(cell, "signal")("mean_square", size / sizes[0], block)
