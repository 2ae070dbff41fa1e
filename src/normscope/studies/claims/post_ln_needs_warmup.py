"""Which transformers need a warm-up of the learning rate: post-norm, pre-norm, or both?"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.studies import Arm, Best, Contrast, Evidence, Quantity, last, presets
from normscope.studies.lab import token_norms
from normscope.studies.lab.arms import recorder
from normscope.studies.lab.warm_up import warm_adam
from normscope.studies.transformer_training import AbstractTransformerTraining
from normscope.studies.usable_rates import LARGEST, frequency_loss, largest, largest_table, loss_by_rate_figure

if TYPE_CHECKING:
    from normscope.studies.evidence import Floats
    from normscope.studies.lab.data import Split

PLACEMENTS = {"post": "post-norm", "pre": "pre-norm"}


class PostLnNeedsWarmup(AbstractTransformerTraining):
    r"""Post-norm transformers need a warm-up of the learning rate; pre-norm transformers do not.

    ## Claim
    A warm-up is essential for post-norm transformers, whose gradients near the output are large at initialization, and
    can be removed for pre-norm transformers (Xiong et al. 2020, abstract).

    ## Method
    Transformers of 4 blocks with layer norm, post-norm and pre-norm (with a norm in front of the head), as models of
    the next character; Adam at four learning rates half a decade apart, larger for pre-norm, with a linear warm-up over
    the first 80 of 200 steps and without. The gain of a run is by how much its last 20 training losses lie below the
    loss of a model that knows only how frequent each character is. The largest usable rate is the largest up to which
    the gain is at least 80 % of the best of the same arm and seed, interpolated between two rates of the grid; a run
    that diverged has no gain, and a seed in which an arm is usable up to the largest rate of the grid gives a bound.
    The headline is the largest usable rate of post-norm with warm-up over without. Claims of their own: warm-up changes
    the largest usable rate of pre-norm by less than the headline's margin; it changes that of post-norm more than that
    of pre-norm; the held-out loss is lower with warm-up, in either placement, at own best rates and at the smallest
    rate that both placements are run at.

    ## Prediction
    Post-norm trains at a larger rate with warm-up. Whether it needs warm-up at its own best rate is open: a smaller
    rate may do as well in the same number of steps. For pre-norm the source expects no difference; in the runs that set
    the sizes of this study warm-up put a factor of two on the largest rate of post-norm and of four on that of
    pre-norm, and changed neither loss at own best rates.

    ## Threats
    Runs of 200 steps of a small network: two fifths of them are warm-up, which takes from the training at small rates.
    At eight blocks of this width post-norm learns no more than the frequencies in 100 steps, at any rate, so depth is
    not varied. Adam has the usual momenta (.9 and .999), whose estimates are poor over the first steps, in either
    placement.
    """

    CODE = "post-ln-needs-warmup"
    CARD = 35
    TOPIC = "transformers"
    SOURCES = ("Xiong et al. 2020 (arXiv:2002.04745), abstract",)
    CLAIM = "Post-norm transformers need a warm-up of the learning rate."
    ON_A_CASE = "the schedule of the set-up is no arm of a comparison"
    ENDPOINT = "Largest usable learning rate of post-norm, with warm-up over without"
    MARGIN = math.log(1.5)
    MARGIN_REASON = "half a step of the grid: a smaller factor is found by any search for a learning rate"
    EXTENSION = True
    ARMS = {
        "post": Arm("post-norm without warm-up", token_norms.layer()),
        "post, warm": Arm("post-norm with warm-up", token_norms.layer()),
        "pre": Arm("pre-norm without warm-up", token_norms.layer()),
        "pre, warm": Arm("pre-norm with warm-up", token_norms.layer()),
    }
    PRESETS = presets(
        quick={
            "network": {"width": 32, "blocks": 4, "heads": 4, "init": "xavier"},
            "context": 32,
            "batch": 8,
            "steps": 200,
            "warmup": 80,
            "lrs": {"post": [0.001, 0.003, 0.01, 0.03], "pre": [0.01, 0.03, 0.1, 0.3]},
            "train": None,
            "test": 128,
        },
        full={
            "network": {"width": 128, "blocks": 6, "heads": 4, "init": "xavier"},
            "context": 128,
            "batch": 32,
            "steps": 3000,
            "warmup": 1000,
            "lrs": {"post": [0.0003, 0.001, 0.003, 0.01, 0.03], "pre": [0.001, 0.003, 0.01, 0.03, 0.1]},
            "test": None,
        },
    )

    def grid(self, settings: Mapping[str, Any]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Yield every arm at the rates of its placement."""
        for arm in self.ARMS:
            for lr in settings["lrs"][_placement(arm)]:
                yield arm, {"lr": lr}

    def sizes(self, cell: Cell) -> dict[str, Any]:
        """Return the placement of the arm."""
        return {"placement": _placement(cell.arm)}

    def options(self, cell: Cell) -> dict[str, Any]:
        """Return Adam with warm-up in the arms that have it."""
        warmup = int(cell.settings["warmup"]) if cell.arm.endswith("warm") else 0
        return {"optimizer": warm_adam(float(cell.point["lr"]), warmup=warmup)}

    def before(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Record the loss of the frequencies, from which gains are counted."""
        yield recorder(cell, "text")("frequency_loss", frequency_loss(split.y_train))

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield what warm-up does to the largest usable rate, to either placement, and to the loss at the best rate."""
        yield Contrast(
            LARGEST,
            "post, warm",
            "post",
            scale="log-ratio",
            name="post",
            says="the largest usable learning rate of post-norm is {effect} with warm-up",
            comparative=("larger", "smaller"),
        )
        yield Contrast(
            LARGEST,
            "pre, warm",
            "pre",
            scale="log-ratio",
            equal_within=self.MARGIN,
            name="pre",
            claim="Pre-norm transformers need no warm-up: their largest usable rate is the same without.",
            says="the largest usable learning rate of pre-norm is {effect} with warm-up",
            comparative=("larger", "smaller"),
        )
        yield Contrast(
            BY_WARM_UP,
            {"placement": "post"},
            {"placement": "pre"},
            scale="log-ratio",
            labels=("post-norm", "pre-norm"),
            name="post against pre",
            claim="Warm-up raises the largest usable rate of post-norm more than that of pre-norm.",
            says="the factor that warm-up puts on the largest usable rate is {effect} in post-norm than in pre-norm",
            comparative=("larger", "smaller"),
        )
        yield Contrast(
            LARGEST,
            "pre",
            "post",
            scale="log-ratio",
            name="pre over post, without",
            claim="Without warm-up, pre-norm trains at larger rates than post-norm.",
            says="without warm-up the largest usable learning rate is {effect} in pre-norm than in post-norm",
            comparative=("larger", "smaller"),
        )
        rates = evidence.settings["lrs"]
        shared = min(lr for lr in rates["post"] if lr in rates["pre"])  # at larger ones post-norm learns nothing
        for placement in PLACEMENTS:
            yield self._losses(placement, Best("lr"), "At own best learning rates")
        for placement in PLACEMENTS:
            yield self._losses(placement, shared, f"At a learning rate of {shared:g}")

    def _losses(self, placement: str, lr: float | Best, when: str) -> Contrast:
        """Return what the lack of a warm-up does to the held-out loss of a placement."""
        words = PLACEMENTS[placement]
        return Contrast(
            LOSS,
            placement,
            f"{placement}, warm",
            at={"lr": lr},
            margin=0.05,
            margin_reason="a twentieth of a nat is a tenth of what these runs gain over the frequencies",
            name=f"loss, {placement}" if isinstance(lr, Best) else f"loss at {lr:g}, {placement}",
            claim=f"{when}, {words} ends at a lower loss with warm-up.",
            says=f"the held-out loss of {words} is {{effect}} without warm-up than with it",
            comparative=("higher", "lower"),
        )

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the loss over rates, and over steps at the best rate of post-norm with warm-up."""
        rate = Best("lr").of(evidence, arm="post, warm")
        return [
            loss_by_rate_figure(evidence, self.wording.arms),
            self.curves(evidence, "loss", at={"arm": ["post", "post, warm"], "lr": rate}, slug="loss"),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the loss at every rate, and the largest usable rates."""
        return [
            *(
                self.grid_table(
                    LOSS,
                    evidence,
                    rows={"arm": [arm for arm in self.ARMS if _placement(arm) == placement]},
                    columns={"lr": rates},
                    title=f"Held-out loss, {PLACEMENTS[placement]}",
                    caption="Runs that diverged have none.",
                )
                for placement, rates in evidence.settings["lrs"].items()
            ),
            largest_table(evidence, self.wording.arms),
        ]


def _placement(arm: str) -> str:
    return arm.partition(",")[0]


def _factor(evidence: Evidence, *, placement: str) -> "Floats":
    """Return per seed the logarithm of the factor of warm-up; none where a rate is only bounded."""
    warm, cold = (largest(evidence, arm=arm) for arm in (f"{placement}, warm", placement))
    return np.where(warm.missed | cold.missed, np.nan, warm.steps - cold.steps)


LOSS = replace(last("test_loss", "held-out loss"), held_out=True)
BY_WARM_UP = Quantity("factor of warm-up on the largest usable rate", _factor, logs=True)
