"""Do initialisations for residual networks without norms bring what batch norm brings?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import polars as pl
import torch
from torch import nn

from normscope.builders import SCHEMES, ResidualNet, residual_cnn, residual_mlp, scalar_groups
from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.studies import AbstractTraining, Best, Contrast, Evidence, Quantity, accuracy, presets, steps_to
from normscope.studies.case_question import BUILT_OTHERWISE
from normscope.studies.lab.arms import first_batch, recorder
from normscope.studies.lab.data import Dataset, Split
from normscope.studies.lab.streams import stream

FREE = ("fixup", "skipinit", "rezero", "nf")
#: Those whose branches are zero at initialization.
ZERO = ("fixup", "skipinit", "rezero")
#: The condition under which arms are compared: each at its own best learning rate by validation loss.
OWN = {"lr": Best("lr")}


class NormaliserFreeCompetitors(AbstractTraining):
    r"""What batch norm brings to a residual network, an initialisation brings too.

    ## Claim
    None of batch norm's benefits is unique to normalization: in residual networks it works by making the branches small
    at initialization, which Fixup, SkipInit, ReZero and normalizer-free networks do without (comment on the Q&A, with
    Zhang et al. 2019).

    ## Method
    Fully connected residual networks of 8 blocks of width 64, three learning rates (smaller ones for He's weights
    alone), each arm at its own best rate by validation loss (all: the same weights up to scale; Fixup's scalars learn
    at a tenth). For each competitor, its gain in mean training accuracy over the run, against He's weights alone, must
    be no worse than batch norm's by more than a fifth; being better never counts against it. The headline is Fixup,
    whose authors make the claim; also tried are SkipInit, ReZero and normalizer-free networks. All say something only
    where batch norm gains over He's weights. Claims of their own: the same competitors end with batch norm's test
    accuracy, within a point or better; layer norm and group norm bring the same gain; and the mean square of the
    stream after the last block at initialization is that of theory, $l + 1$ with norms, $2^l$ without,
    $1 + .04\,l$ normalizer-free; for the zero-initialized it is 1, exactly.

    ## Prediction
    The speed is recovered; the accuracy in part, as batch norm also regularizes. Plain networks without skips are not
    covered.

    ## Threats
    Depth and learning rates were set after a first look at 16 blocks, which He's weights alone did not train.
    Where He's weights alone train as well, there is no gain to share, and a seed without gain is left out. The mean
    accuracy over the run stands for speed, since steps to a target are censored for the arm that never gets there.
    SkipInit's and Fixup's published results are from their papers' code and abstracts.
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
    CLAIM = "An initialisation for residual networks trains them as fast as batch norm does."
    ON_A_CASE = BUILT_OTHERWISE
    ENDPOINT = "Gain in training accuracy over the run against He's weights alone, Fixup's less batch norm's"
    MARGIN = 0.2
    MARGIN_REASON = "who keeps four fifths of batch norm's gain has what makes it worth having"
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
    CONDITIONS = {"step": "after {} blocks"}
    VARIES = {"arms": "scheme"}
    PRESETS = presets(
        quick={
            "network": {"name": "mlp", "depth": 8, "width": 64},
            "batch": 64,
            "lrs": [0.01, 0.03, 0.1],
            "plain_lrs": [0.0003, 0.001, 0.01],
            "steps": 150,
            "train": None,
            "test": None,
        },
        full={
            "network": {"name": "cnn", "depth": 54, "width": 16},
            "batch": 128,
            "lrs": [0.01, 0.03, 0.1, 0.3],
            "plain_lrs": [0.00001, 0.0001, 0.001, 0.01],
            "steps": 30000,
        },
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every scheme at every learning rate; He's weights alone at smaller ones: their gradients are huge."""
        for arm in self.ARMS:
            for rate in settings["plain_lrs" if arm == "none" else "lrs"]:
                yield arm, {"lr": rate}

    def network(self, cell: Cell, data: Dataset, device: str) -> nn.Module:
        """Return the network of an arm."""
        sizes, outputs = cell.settings["network"], data.classes
        depth, width, seed = sizes["depth"], sizes["width"], stream(cell.seed, "init")
        if sizes["name"] == "cnn":
            model = residual_cnn(depth, width, channels=data.shape[0], outputs=outputs, scheme=cell.arm, seed=seed)
        else:
            model = residual_mlp(
                depth, width, inputs=math.prod(data.shape), outputs=outputs, scheme=cell.arm, seed=seed
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

    def before(self, cell: Cell, model: nn.Module, split: Split) -> Iterator[Record]:
        """Record the stream's mean square after each block, the stem's taken for one; ``step`` counts blocks."""
        net, record = cast(ResidualNet, model), recorder(cell, "signal")
        buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
        with torch.no_grad():
            sizes = [float(part.square().mean()) for part in net.stream(first_batch(split, cell, 512)[0])]
            for name, buffer in net.named_buffers():
                buffer.copy_(buffers[name])
        for block, size in enumerate(sizes):
            yield record("mean_square", size / sizes[0], block)

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the gain of each competitor, Fixup's first; then accuracy, the other norms, and the stream."""
        yield from (self._gain(arm) for arm in FREE)
        for arm in FREE:
            yield Contrast(
                accuracy(),
                arm,
                "batch",
                at=OWN,
                no_worse_than=0.01,
                margin_reason="a point is three of the 300 test images",
                claim="An initialisation for residual networks ends with the test accuracy of batch norm.",
                name=f"accuracy, {arm}",
                says=f"test accuracy is {{effect}} with {self.ARMS[arm]} than with batch norm",
                comparative=("higher", "lower"),
            )
        for arm in ("layer", "group"):
            yield self._gain(arm, "Layer norm and group norm train residual networks as fast as batch norm does.")
        depth = int(evidence.settings["network"]["depth"])
        for arm, words in self.ARMS.items():
            theory = SCHEMES[arm].signal(depth, SCHEMES[arm].alpha or 0.0)
            rule: dict[str, Any] = {
                "equal_within": math.log(1.5),
                "margin_reason": "theory is for infinite width: at width 64 the draw of the weights makes a fifth",
                "claim": "The mean square of the stream at initialization is that of theory.",
                "says": f"with {words} the stream's mean square is {{effect}} than in theory",
                "comparative": ("larger", "smaller"),
            }
            if arm in ZERO:
                rule = {
                    "exact_within": 1e-6,
                    "claim": "Branches that start at zero leave the stream as it is.",
                    "says": f"with {words} the mean square of the stream stays that of the stem, {{effect}}",
                }
            labels, name = (words, "theory"), f"stream, {arm}"
            at = {"step": depth}
            yield Contrast(STREAM, arm, theory, at=at, scale="log-ratio", labels=labels, name=name, **rule)

    def _gain(self, arm: str, claim: str = "") -> Contrast:
        """Return an arm's gain over He's weights alone, in percent of batch norm's, less the whole of it."""
        gains = Contrast(
            AREA,
            "batch",
            "none",
            at=OWN,
            margin=0.01,
            margin_reason="of a smaller gain no share can be told",
            claim="Batch norm gains over He's weights alone",
            says="the mean training accuracy over the run is {effect} with batch norm",
            comparative=("higher", "lower"),
        )
        return Contrast(
            SHARE,
            arm,
            1.0,
            at=OWN,
            no_worse_than=self.MARGIN,
            claim=claim,
            labels=("", "batch norm"),
            name=arm,
            says=f"the gain in training accuracy is {{effect}} with {self.ARMS[arm]} than with batch norm",
            comparative=("larger", "smaller"),
            premises=(gains,),
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the loss at a common learning rate, and the stream."""
        rate = sorted(evidence.settings["lrs"])[len(evidence.settings["lrs"]) // 2]
        depth = int(evidence.settings["network"]["depth"])
        return [
            self.curves(evidence, "loss", at={"lr": rate}, slug="loss"),
            self.curves(
                evidence,
                "mean_square",
                probe="signal",
                slug="stream",
                title="Mean square of the stream at initialization",
                x_title="Blocks",
                y_title="Mean square, the stem's being one",
                log=True,
                caption=f"After {depth} blocks: "
                + "; ".join(f"{words} {STREAM.text(evidence, arm=arm, step=depth)}" for arm, words in self.ARMS.items())
                + ".",
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the arms at their own best learning rates, and all contrasts."""
        columns, rows = [steps_to(0.9), AREA, accuracy()], []
        for arm, words in self.ARMS.items():
            lr = OWN["lr"].of(evidence, arm=arm)
            rows.append((words, f"{lr:g}", *(quantity.text(evidence, arm=arm, lr=lr) for quantity in columns)))
        heads = (
            "Scheme",
            "Own best learning rate",
            "Steps to 90 % of the way",
            "Mean training accuracy",
            "Test accuracy",
        )
        caption = "Kaplan-Meier means of the steps, with their intervals; in brackets, how many runs never get there."
        return [
            Table("Schemes at their own best learning rate", heads, tuple(rows), caption),
            *super().tables(evidence),
        ]


def _area(evidence: Evidence, **where: Any) -> np.ndarray:
    """Return per seed the mean training accuracy over the steps asked for; steps after a divergence count as 0."""
    frame = evidence.select(probe="training", name="accuracy", **where)
    return evidence.per_seed(frame, pl.col("value").fill_nan(0.0).sum() / int(evidence.settings["steps"]))


def _share(evidence: Evidence, **where: Any) -> np.ndarray:
    """Return per seed how much an arm recovers of batch norm's gain over He's weights alone; NaN without a gain."""
    none, batch = (_area(evidence, arm=arm, lr=OWN["lr"].of(evidence, arm=arm)) for arm in ("none", "batch"))
    gain = batch - none
    return np.where(gain > 0.01, (_area(evidence, **where) - none) / np.where(gain > 0.01, gain, 1.0), np.nan)


def _stream(evidence: Evidence, **where: Any) -> np.ndarray:
    return np.log(evidence.per_seed(evidence.select(probe="signal", name="mean_square", **where)))


AREA = Quantity("mean training accuracy over the run", _area, unit="points")
SHARE = Quantity("share of batch norm's gain in mean training accuracy over the run", _share, unit="%")
STREAM = Quantity("mean square of the stream at initialization", _stream, logs=True)
