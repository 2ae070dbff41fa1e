"""The stream of a pre-norm transformer: does its variance make deep blocks the identity, and does scaling mend it?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from normscope.plots import Figure, Table, by_depth
from normscope.records import Cell, Record
from normscope.studies import Arm, Contrast, Evidence, Quantity, presets
from normscope.studies.case_question import BUILT_OTHERWISE
from normscope.studies.lab import changed_norms, token_norms
from normscope.studies.lab.arms import first_batch
from normscope.studies.lab.held_out import HELD_OUT, chance
from normscope.studies.lab.models import Norm
from normscope.studies.lab.stream_by_block import (
    ANGLE,
    PROBE,
    RATE,
    RISE,
    VARIANCE,
    WORTH,
    blocks_of,
    stream_by_block,
    worth_of_blocks,
)
from normscope.studies.transformer_training import AbstractTransformerTraining

if TYPE_CHECKING:
    from normscope.studies.lab.data import Split

INITS = {"pre": "Xavier's weights", "small": "weights scaled by depth"}
#: Windows on which the stream is measured, and those on which blocks are taken out.
WINDOWS, FEW = 64, 16


class PreLnDepthCurse(AbstractTransformerTraining):
    r"""The deep blocks of a pre-norm transformer come near the identity, for the variance of the stream grows.

    ## Claim
    In pre-norm transformers the variance of the stream grows exponentially with depth, so that the derivative of deep
    blocks is near the identity matrix and they hardly contribute. LayerNorm Scaling, which multiplies the output of a
    norm by one over the square root of its block's number, slows the growth and mends it; scaled initialization takes
    from what it gains (Sun et al. 2025, abstract and its footnote).

    ## Method
    Transformers of 12 blocks of width 32 on characters, 80 steps of Adam at .003 with a warm-up of 30: pre-norm,
    pre-norm with the scaling, post-norm, all with Xavier's weights, and pre-norm with the last matrices of its branches
    divided by the square root of the number of branches (scaled initialization). Before and after training: the
    variance of the stream behind each block; the angle by which a block turns the stream, which is 0 for the identity;
    after training also by how much the loss rises if the block is taken out. The headline is the angle in the first
    third of the blocks over that in the last, pre-norm, after training. Claims of their own: the variance grows with
    depth; it grows by one factor a block (exponentially), or by one amount (along a line); deep blocks are worth less
    than early blocks; deep blocks of post-norm turn the stream more; the scaling slows the growth; it makes deep blocks
    turn the stream more; it lowers the loss.

    ## Prediction
    A branch adds what does not depend on the size of the stream, so at the start variance grows along a line,
    $v_l = v_0 + c\,l$, not exponentially, and the angle falls as $\sqrt{c/v_l}$. With the scaling the branch of block
    l adds about $c/l$: the variance grows as $\log l$, but the angle falls as $\sqrt{c/(l\,v_l)}$, faster than
    without. So the scaling slows the growth and makes deep blocks more like the identity, at the start at least.

    ## Threats
    80 steps do not tell what training makes of deep blocks in the end; the source's models have 130 million parameters
    and more. Characters that follow each other are mostly told by the last few, which needs few blocks, so blocks of
    any depth may be worth little. The angle says nothing of the derivative's other directions.
    """

    CODE = "pre-ln-depth-curse"
    CARD = 40
    TOPIC = "transformers"
    EXTENSION = True
    SOURCES = ("Sun et al. 2025 (arXiv:2502.05795), abstract",)
    CLAIM = "Deep blocks of a pre-norm transformer are nearer to the identity than early blocks."
    ON_A_CASE = BUILT_OTHERWISE
    ENDPOINT = "Angle by which a block turns the stream, first third of 12 blocks over the last, after training"
    MARGIN = math.log(1.5)
    MARGIN_REASON = "blocks beside each other in one third differ by as much"
    ARMS = {
        "pre": Arm("pre-norm", token_norms.layer()),
        "scaled": Arm("pre-norm with 1/sqrt(l) scaling", token_norms.layer()),
        "post": Arm("post-norm", token_norms.layer()),
        "small": Arm("pre-norm with scaled initialization", token_norms.layer()),
    }
    CONDITIONS = {"step": "{} steps of training", "part": "{} third", "half": "{} half", "block": "block {}"}
    VARIES = {"step": "length of training", "init": "initialization"}
    PRESETS = presets(
        quick={
            "network": {"width": 32, "blocks": 12, "heads": 2},
            "lr": 0.003,
            "steps": 80,
            "warmup": 30,
            "batch": 8,
            "test": 64,
        },
        full={
            "network": {"width": 128, "blocks": 24, "heads": 4},
            "lr": 0.001,
            "steps": 5000,
            "warmup": 500,
            "batch": 32,
        },
    )

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return placement and initial weights of the arm."""
        return {
            "placement": "post" if cell.arm == "post" else "pre",
            "init": "xavier-scaled" if cell.arm == "small" else "xavier",
        }

    def norm(self, cell: Cell) -> Norm:
        """Return layer norm, scaled by depth in the arm that has it."""
        scaled = cell.arm == "scaled"
        return changed_norms.scaled_by_depth(cell.settings["network"]["blocks"]) if scaled else super().norm(cell)

    def before(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Record the loss of chance, and the stream before training."""
        yield from chance(cell, model)  # type: ignore[arg-type]
        yield from stream_by_block(cell, model, split.x_test[:WINDOWS], 0)  # type: ignore[arg-type]

    def after(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Record the stream after training, and what blocks are worth."""
        steps = int(cell.settings["steps"])
        yield from stream_by_block(cell, model, split.x_test[:WINDOWS], steps)  # type: ignore[arg-type]
        yield from worth_of_blocks(cell, model, first_batch(split, cell, FEW), steps)  # type: ignore[arg-type]

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield how much more early blocks turn the stream; then variance, worth, post-norm and the scaling."""
        end = evidence.settings["steps"]
        places = {"trained": ("pre", end), "start": ("pre", 0), "scaled initialization": ("small", end)}
        for name, (arm, step) in places.items():
            yield _early_late(ANGLE, arm, step, f"angle, {name}", self.CLAIM, "turns the stream {effect}")
        yield from self._variance(places, len(blocks_of(evidence)))
        worth = "Deep blocks of a pre-norm transformer are worth less than early blocks."
        yield _early_late(
            WORTH,
            "pre",
            end,
            "worth",
            worth,
            "is worth {effect}",
            scale="difference",
            margin=0.01,
            margin_reason="a hundredth of a nat is what one step brings",
        )
        yield _deep("post", "pre", end, "post-norm", "Deep blocks of a post-norm transformer turn the stream more.")
        mended = "The scaling makes deep blocks turn the stream more."
        for name, step in (("trained", end), ("start", 0)):
            yield _deep("scaled", "pre", step, f"scaling, angle, {name}", mended)
        yield Contrast(
            HELD_OUT,
            "pre",
            "scaled",
            margin=0.05,
            margin_reason="a twentieth of a nat is what some fifteen more steps bring",
            name="scaling, loss",
            claim="The scaling lowers the held-out loss.",
            says="the held-out loss is {effect} without the scaling",
            comparative=("higher", "lower"),
        )

    def _variance(self, places: Mapping[str, tuple[str, int]], count: int) -> Iterator[Contrast]:
        """Yield whether the variance grows, by one factor a block, and slower with the scaling."""
        for name, (arm, step) in places.items():
            yield Contrast(
                VARIANCE,
                {"arm": arm, "block": count},
                {"arm": arm, "block": 1},
                at={"step": step},
                conditions={"init": INITS[arm]},
                labels=("last block", "first block"),
                scale="log-ratio",
                margin=math.log(2),
                margin_reason="the stream's variance doubles within the first two blocks",
                name=f"variance, {name}",
                claim="The variance of the stream of a pre-norm transformer grows with depth.",
                says="the variance behind the last block is {effect} than behind the first",
                comparative=("larger", "smaller"),
            )
        for name, step in (("trained", places["trained"][1]), ("start", 0)):
            for kind, (quantity, bound, why, claim, says) in KINDS.items():
                yield Contrast(
                    quantity,
                    {"arm": "pre", "half": "last"},
                    {"arm": "pre", "half": "first"},
                    at={"step": step},
                    labels=("last half", "first half"),
                    scale="log-ratio",
                    equal_within=math.log(bound),
                    margin_reason=why,
                    name=f"{kind}, {name}",
                    claim=claim,
                    says=f"{says} is {{effect}} in the last half of the blocks than in the first",
                    comparative=("larger", "smaller"),
                )
            yield Contrast(
                VARIANCE,
                "pre",
                "scaled",
                at={"step": step, "block": count},
                scale="log-ratio",
                name=f"scaling, variance, {name}",
                claim="The scaling slows the growth of the stream's variance.",
                says="the variance behind the last block is {effect} without the scaling",
                comparative=("larger", "smaller"),
            )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw variance and angle by block after training, and the loss."""
        end = evidence.settings["steps"]
        said = {
            "variance": ("Variance of the stream behind each block", "Variance", _said(evidence, VARIANCE, end)),
            "angle": ("Angle by which each block turns the stream", "Degrees", _said(evidence, ANGLE, end)),
        }
        drawn = [
            by_depth(
                evidence.select(probe=PROBE, name=name, step=end),
                y=name,
                slug=name,
                title=f"{title}, after {end} steps",
                y_title=y_title,
                arms=list(self.ARMS),
                labels=self.wording.arms,
                caption=caption,
            )
            for name, (title, y_title, caption) in said.items()
        ]
        return [*drawn, self.curves(evidence, "loss", slug="loss")]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate variance, angle and worth by block."""
        blocks, end = blocks_of(evidence), evidence.settings["steps"]
        return [
            self.grid_table(
                [VARIANCE, ANGLE, WORTH],
                evidence,
                rows={"arm": list(self.ARMS), "block": [blocks[0], blocks[len(blocks) // 2], blocks[-1]]},
                at={"step": end},
                title=f"The stream by block, after {end} steps",
                heads={"block": "Block"},
            )
        ]


#: Kinds of growth: what is the same in both halves of the blocks, within which bound, and why within that.
KINDS = {
    "exponential": (
        RATE,
        1.05,
        "a factor of 1.05 a block is one of two over these blocks",
        "The variance grows exponentially: by the same factor in every block.",
        "the factor by which a block raises the variance",
    ),
    "along a line": (
        RISE,
        1.5,
        "single blocks differ by as much",
        "The variance grows along a line: by the same amount in every block.",
        "the amount by which a block raises the variance",
    ),
}


def _early_late(
    quantity: Quantity, arm: str, step: int, name: str, claim: str, does: str, scale: str = "log-ratio", **rule: Any
) -> Contrast:
    """Return the contrast of the first third of the blocks with the last."""
    first, last = ({"arm": arm, "part": part} for part in ("first", "last"))
    says = f"a block of the first third {does} than a block of the last"
    words = {"scale": scale, "name": name, "claim": claim, "says": says, "comparative": ("more", "less"), **rule}
    words |= {"labels": ("first third", "last third"), "conditions": {"init": INITS[arm]}}
    return Contrast(quantity, first, last, at={"step": step}, **words)


def _deep(first: str, second: str, step: int, name: str, claim: str) -> Contrast:
    """Return the contrast of two arms' deep blocks."""
    one, other = (PreLnDepthCurse.ARMS[arm] for arm in (first, second))
    says = f"a block of the last third turns the stream {{effect}} in {one} than in {other}"
    at, names = {"step": step, "part": "last"}, ("more", "less")
    return Contrast(
        ANGLE, first, second, at=at, scale="log-ratio", name=name, claim=claim, says=says, comparative=names
    )


def _said(evidence: Evidence, quantity: Quantity, step: int) -> str:
    """Return a caption: the quantity at the last block, by arm."""
    last = blocks_of(evidence)[-1]
    ends = (f"{quantity.text(evidence, arm=arm, block=last, step=step)} with {words}"
            for arm, words in PreLnDepthCurse.ARMS.items())  # fmt: skip
    return f"At block {last}: {', '.join(ends)}."
