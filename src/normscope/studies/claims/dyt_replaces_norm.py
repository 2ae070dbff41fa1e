"""Does a transformer with dynamic tanh train as well as a transformer with a norm, and better than without either?"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from torch import nn

from normscope.plots import Figure, Table, by_depth
from normscope.records import Cell, Outcome, Record
from normscope.stats import slope_per_seed
from normscope.studies import Arm, Best, Contrast, Evidence, Quantity, last, presets
from normscope.studies.case_question import CaseQuestion
from normscope.studies.lab import token_norms
from normscope.studies.lab.arms import recorder
from normscope.studies.lab.last_gradients import block_gradients, with_branches_times
from normscope.studies.transformer_training import AbstractTransformerTraining
from normscope.studies.usable_rates import LARGEST, frequency_loss, largest_table, loss_by_rate_figure

if TYPE_CHECKING:
    from normscope.studies.evidence import Floats
    from normscope.studies.lab.data import Split

ARMS = {
    "layer": Arm("layer norm", token_norms.layer()),
    "dyt": Arm("dynamic tanh", token_norms.dyt()),
    "none": Arm("no norm", token_norms.none()),
}
#: Initial weights, by the name of their gradients' records.
WEIGHTS = {"norm": "the initial weights of the runs", "norm_glorot": "Glorot's weights as they are"}


class DytReplacesNorm(AbstractTransformerTraining):
    r"""Dynamic tanh in place of every norm trains a transformer as well as the norm does.

    ## Claim
    Transformers without normalization, with $\tanh(\alpha x)$ (and gain and shift) in place of each norm, match or
    exceed those with normalization, mostly without tuning (Zhu et al. 2025, abstract).

    ## Method
    Pre-norm transformers of 2 and 6 blocks as models of the next character, with layer norm, dynamic tanh (alpha begins
    at 0.5, one for each place, learnt) and nothing; Adam at four learning rates half a decade apart, with a short
    warm-up. Initial weights are Glorot's, the last of each branch divided by the square root of the number of branches
    as in GPT-2, which suits a network without a norm; embeddings have a variance of 1. The headline is the held-out
    loss at 6 blocks, each arm at its own best rate by the validation loss: with dynamic tanh no more than two per cent
    above that with layer norm. Also tried: 2 blocks. Claims of their own, for a network without a norm may be as good
    at its best rate: the largest usable rate with dynamic tanh is no smaller than with layer norm; it is larger than
    without a norm; the loss at own best rates is lower than without a norm; before training the gradient norm of the
    feed-forward matrices grows no more a block toward the input than with layer norm, by more than 1.05, with these
    weights and with Glorot's undivided. A rate is usable up to which the gain over the frequencies of characters is at
    least 80 % of the arm's best.

    ## Prediction
    The source expects dynamic tanh to be as good. In the runs that set the sizes of this study it was five per cent
    behind layer norm at 6 blocks and no better than no norm, which at its own best rate is as good as layer norm and
    diverges first as the rate grows, the earlier the deeper. Where the stream is small, dynamic tanh is linear and
    scales nothing; where the stream has grown, it saturates.

    ## Threats
    Runs of 120 steps of small networks: a layer that only begins more slowly loses here. Alpha is not tuned, and small
    embeddings, as in GPT-2's code, would leave dynamic tanh in its linear part.
    """

    CODE = "dyt-replaces-norm"
    CARD = 37
    TOPIC = "transformers"
    SOURCES = ("Zhu et al. 2025 (arXiv:2503.10622), abstract",)
    CLAIM = "Dynamic tanh in place of the norms trains a transformer as well."
    ON_A_CASE = CaseQuestion("speed", ("dyt", "layer"), in_favour=(Outcome.HOLDS, Outcome.NO_EFFECT))
    ENDPOINT = "Held-out loss with layer norm over dynamic tanh, own best learning rates, 6 blocks"
    MARGIN = math.log(1.02)
    MARGIN_REASON = (
        "two per cent of the loss is about what half a decade of the learning rate makes of it near the best"
    )
    EXTENSION = True
    ARMS = ARMS
    POINTS = {"depth": "depths", "lr": "lrs"}
    CONDITIONS = {"depth": "{:g} blocks"}
    VARIES = {"weights": "initial weights"}
    PRESETS = presets(
        quick={
            "network": {"width": 32, "heads": 4, "init": "xavier-scaled"},
            "depths": [2, 6],
            "judged": 6,
            "context": 32,
            "batch": 8,
            "steps": 120,
            "warmup": 10,
            "lrs": [0.003, 0.01, 0.03, 0.1],
            "train": None,
            "test": 128,
        },
        full={
            "network": {"width": 128, "heads": 4, "init": "xavier-scaled"},
            "depths": [4, 16],
            "judged": 16,
            "context": 128,
            "batch": 32,
            "steps": 3000,
            "warmup": 100,
            "lrs": [0.0003, 0.001, 0.003, 0.01, 0.03],
            "test": None,
        },
    )

    def sizes(self, cell: Cell) -> dict[str, Any]:
        """Return the point's number of blocks."""
        return {"blocks": int(cell.point["depth"])}

    def before(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Record the loss of the frequencies, and the gradient of each block at the start."""
        yield recorder(cell, "text")("frequency_loss", frequency_loss(split.y_train))
        size, blocks = int(cell.settings["batch"]), int(cell.point["depth"])
        x, y = split.x_train[:size], split.y_train[:size]
        record = recorder(cell, "gradient")
        for index, norm in enumerate(block_gradients(model, x, y, blocks)):
            yield record("norm", norm, site=f"blocks.{index}")
        undivided = with_branches_times(model, math.sqrt(2 * blocks))
        for index, norm in enumerate(block_gradients(undivided, x, y, blocks)):
            yield record("norm_glorot", norm, site=f"blocks.{index}")

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield losses at own best rates, largest usable rates, and the growth of gradients, at either depth."""
        judged = evidence.settings["judged"]
        depths = (judged, *(depth for depth in evidence.settings["depths"] if depth != judged))
        own = {"lr": Best("lr")}
        for depth in depths:
            yield Contrast(
                LOSS,
                "layer",
                "dyt",
                at={"depth": depth, **own},
                scale="log-ratio",
                no_worse_than=self.MARGIN,
                name=f"loss against layer, {depth} blocks",
                says="the held-out loss is {effect} with layer norm than with dynamic tanh",
                comparative=("higher", "lower"),
            )
        for depth in depths:
            yield Contrast(
                LOSS,
                "none",
                "dyt",
                at={"depth": depth, **own},
                scale="log-ratio",
                name=f"loss against none, {depth} blocks",
                claim="At own best learning rates dynamic tanh ends at a lower loss than no norm.",
                says="the held-out loss is {effect} without a norm than with dynamic tanh",
                comparative=("higher", "lower"),
            )
        yield from self._rates(depths)
        yield from self._growth(judged)

    def _rates(self, depths: Sequence[int]) -> Iterator[Contrast]:
        """Yield the largest usable rates against layer norm and against no norm."""
        for depth in depths:
            yield Contrast(
                LARGEST,
                "dyt",
                "layer",
                at={"depth": depth},
                scale="log-ratio",
                no_worse_than=math.log(1.5),
                margin_reason="half a step of the grid",
                name=f"rate against layer, {depth} blocks",
                claim="Dynamic tanh trains at learning rates as large as layer norm does.",
                says="the largest usable learning rate is {effect} with dynamic tanh than with layer norm",
                comparative=("larger", "smaller"),
            )
        for depth in depths:
            yield Contrast(
                LARGEST,
                "dyt",
                "none",
                at={"depth": depth},
                scale="log-ratio",
                margin=math.log(1.5),
                margin_reason="half a step of the grid",
                name=f"rate against none, {depth} blocks",
                claim="Dynamic tanh trains at larger learning rates than no norm.",
                says="the largest usable learning rate is {effect} with dynamic tanh than without a norm",
                comparative=("larger", "smaller"),
            )

    def _growth(self, depth: int) -> Iterator[Contrast]:
        """Yield the growth of gradients at the start, with the initial weights of the runs and with Glorot's."""
        for name, words in WEIGHTS.items():
            for arm in ("dyt", "none"):
                yield Contrast(
                    growth(name),
                    "layer",
                    arm,
                    at={"depth": depth},
                    conditions={"weights": words},
                    scale="log-ratio",
                    no_worse_than=math.log(1.05),
                    margin_reason="1.05 a block is less than a factor of 1.4 over the six blocks",
                    name=f"growth, {arm}, {name}",
                    claim=f"Before training gradients grow no more a block with {ARMS[arm]} than with layer norm.",
                    says=f"the growth of the gradient a block is {{effect}} with layer norm than with {ARMS[arm]}",
                    comparative=("larger", "smaller"),
                )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw losses over rates, losses over steps, and the gradient by block at the start."""
        depth, words = evidence.settings["judged"], self.wording.arms
        rate = Best("lr").of(evidence, arm="layer", depth=depth)
        return [
            loss_by_rate_figure(evidence, words, depth=depth),
            self.curves(evidence, "loss", at={"depth": depth, "lr": rate}, slug="loss"),
            by_depth(
                evidence.select(probe="gradient", name="norm", depth=depth, lr=rate),
                y="norm",
                slug="gradient",
                title=f"Gradient norm of each block's last matrix at the start, {depth} blocks",
                y_title="Gradient norm",
                arms=list(words),
                labels=words,
            ),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate held-out losses at every rate, and the rates."""
        depths = evidence.settings["depths"]
        return [
            self.grid_table(
                last("test_loss", "held-out loss"),
                evidence,
                rows={"depth": depths, "arm": list(self.ARMS)},
                columns={"lr": evidence.settings["lrs"]},
                heads={"depth": "Blocks"},
                caption="Runs that diverged have none.",
            ),
            *(
                replace(
                    largest_table(evidence, self.wording.arms, depth=depth), title=f"Learning rates, {depth} blocks"
                )
                for depth in depths
            ),
        ]


def growth(name: str) -> Quantity:
    """Return the factor by which the gradient norm grows a block toward the input, before any training.

    Args:
        name: Of the records: a name of ``WEIGHTS``.
    """

    def read(evidence: Evidence, **where: Any) -> "Floats":
        frame = evidence.select(probe="gradient", name=name, **where)
        # Every learning rate starts from the same weights.
        frame = frame.filter(pl.col("lr") == pl.col("lr").min()).with_columns(
            pl.col("site").str.extract(r"(\d+)$").cast(pl.Int64).alias("block")
        )
        found = []
        for seed in evidence.seeds:
            part = frame.filter(pl.col("seed") == seed).sort("block")
            norms = part["value"].to_numpy()
            usable = len(norms) > 1 and bool((np.isfinite(norms) & (norms > 0)).all())
            found.append(-float(slope_per_seed(part["block"].to_numpy(), np.log(norms))[0]) if usable else np.nan)
        return np.array(found)

    return Quantity("growth of the gradient norm a block toward the input", read, logs=True)


LOSS = replace(last("test_loss", "held-out loss", logs=True), held_out=True)
