"""A norm on queries and keys: attention logits at high learning rates, and up to which rate a transformer trains."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from torch import nn

from normscope.plots import Figure, Table
from normscope.records import Cell, Record
from normscope.studies import Arm, Best, Contrast, Evidence, Quantity, presets
from normscope.studies.case_question import BUILT_OTHERWISE
from normscope.studies.evidence import Floats
from normscope.studies.lab import token_norms
from normscope.studies.lab.arms import recorder
from normscope.studies.lab.attention_meter import PROBE, AttentionMeter
from normscope.studies.lab.held_out import HELD_OUT, chance
from normscope.studies.lab.meters import AbstractMeter
from normscope.studies.transformer_training import AbstractTransformerTraining
from normscope.studies.usable_rates import LARGEST, frequency_loss, largest_table, loss_by_rate_figure

if TYPE_CHECKING:
    from normscope.studies.lab.data import Split


class QkNormStability(AbstractTransformerTraining):
    r"""A norm on queries and keys lets a transformer train at higher learning rates.

    ## Claim
    At high learning rates attention logits grow until the weights pick one position and training diverges; layer norm
    on queries and keys prevents it (Dehghani et al. 2023: 8 billion parameters). Small models show the same at high
    rates, and the loss then depends less on the rate (Wortsman et al. 2023, abstract and section 3.1.1).

    ## Method
    Pre-norm transformers of 4 blocks of width 32 on characters, Adam with a warm-up of 30 of 120 steps, five learning
    rates, with and without layer norm on queries and keys of each head (gain and shift learnt). The headline is the
    largest usable rate with over without: the largest up to which the gain over the loss of the frequencies keeps 80 %
    of the arm's best, interpolated between rates; a seed in which the largest rate of the grid is usable gives a bound.
    Claims of their own: the largest logit of a run is larger without, at every rate; at rates of .1 and more queries
    pick single positions without, and the loss ends higher; over all rates the loss depends more on the rate without
    (the source's sensitivity: mean over rates of the loss less the best); at own best rates the norm costs nothing.

    ## Prediction
    The largest logit grows to tens of thousands without and stays at tens with the norm, whose gains bound it. The
    largest usable rate rises by less than a factor of two: at such rates other parts of the network fail too.

    ## Threats
    The source speaks of slow divergence over thousands of steps of large models; here are 120 steps of a small model,
    which at high rates does not become infinite but ends no better than the frequencies. The grid's rates are a
    factor of two to three apart, and between two rates the gain is taken to fall on a line.
    """

    CODE = "qk-norm-stability"
    CARD = 39
    TOPIC = "transformers"
    EXTENSION = True
    SOURCES = (
        "Dehghani et al. 2023 (arXiv:2302.05442), QK normalization",
        "Wortsman et al. 2023 (arXiv:2309.14322), abstract and section 3.1.1",
    )
    CLAIM = "A norm on queries and keys lets a transformer train at higher learning rates."
    ON_A_CASE = BUILT_OTHERWISE
    ENDPOINT = "Largest usable learning rate, with a norm on queries and keys over without"
    MARGIN = math.log(1.2)
    MARGIN_REASON = "a fifth more is a step that a search for a learning rate does not make"
    ARMS = {
        "none": Arm("no norm on queries and keys", token_norms.layer()),
        "qk": Arm("layer norm on queries and keys", token_norms.layer()),
    }
    POINTS = {"lr": "lrs"}
    PRESETS = presets(
        quick={
            "network": {"width": 32, "blocks": 4, "heads": 2, "init": "xavier"},
            "lrs": [0.01, 0.03, 0.1, 0.2, 0.4],
            "high": 0.1,
            "steps": 120,
            "warmup": 30,
            "batch": 8,
            "test": 64,
        },
        full={
            "network": {"width": 128, "blocks": 12, "heads": 4, "init": "xavier"},
            "lrs": [0.001, 0.003, 0.01, 0.03, 0.1, 0.2],
            "steps": 5000,
            "warmup": 500,
            "batch": 32,
        },
    )

    def sizes(self, cell: Cell) -> Mapping[str, Any]:
        """Return the norm of queries and keys of the arm."""
        return {"qk_norm": token_norms.layer() if cell.arm == "qk" else None}

    def meters(self, cell: Cell) -> Sequence[AbstractMeter]:
        """Read logits and weights of every block."""
        return [AttentionMeter(int(cell.settings["network"]["blocks"]), every=max(2, cell.settings["steps"] // 60))]

    def before(self, cell: Cell, model: nn.Module, split: "Split") -> Iterable[Record]:
        """Record the losses of chance and of the frequencies."""
        yield from chance(cell, model)  # type: ignore[arg-type]
        yield recorder(cell, "text")("frequency_loss", frequency_loss(split.y_train))

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the largest usable rate; then logits, weights, the loss at a high rate, sensitivity, and the cost."""
        lrs, high = evidence.settings["lrs"], evidence.settings["high"]
        yield Contrast(
            LARGEST,
            "qk",
            "none",
            scale="log-ratio",
            name="largest rate",
            says="the largest usable learning rate is {effect} with a norm on queries and keys",
            comparative=("larger", "smaller"),
        )
        for lr in (high, *(lr for lr in lrs if lr != high)):
            yield Contrast(
                LOGIT,
                "none",
                "qk",
                at={"lr": lr},
                scale="log-ratio",
                margin=math.log(2),
                margin_reason="twice as large a logit is what a few more steps make of it",
                name=f"logits, {lr:g}",
                claim="A norm on queries and keys keeps attention logits from growing.",
                says="the largest attention logit of a run is {effect} without the norm on queries and keys",
                comparative=("larger", "smaller"),
            )
        for lr in (lr for lr in lrs if lr >= high):
            yield Contrast(
                WEIGHT,
                "none",
                "qk",
                at={"lr": lr},
                margin=0.1,
                margin_reason="a tenth of the weight is what two blocks differ by",
                name=f"single positions, {lr:g}",
                claim="At high learning rates attention picks single positions without a norm on queries and keys.",
                says="the largest weight of a query is {effect} without the norm on queries and keys",
                comparative=("larger", "smaller"),
            )
            yield _loss(f"loss, {lr:g}", {"lr": lr}, "At high learning rates the loss ends higher without the norm.")
        yield Contrast(
            SENSITIVITY,
            "none",
            "qk",
            margin=0.03,
            margin_reason="a tenth of what the loss differs by over the rates of the grid",
            name="sensitivity",
            claim="With a norm on queries and keys the loss depends less on the learning rate.",
            says="over all rates the loss lies {effect} above the best without the norm on queries and keys",
            comparative=("more", "less"),
        )
        cost = "At own best learning rates a norm on queries and keys costs nothing."
        yield _loss("own best rates", {"lr": Best("lr")}, cost, no_worse_than=0.03)

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the loss by rate, and logits and loss over steps at the high rate."""
        at = {"lr": evidence.settings["high"]}
        said = " and ".join(f"{LOGIT.text(evidence, arm=arm, **at)} with {words}" for arm, words in self.ARMS.items())
        return [
            loss_by_rate_figure(evidence, self.wording.arms),
            self.curves(
                evidence,
                "largest_logit",
                probe=PROBE,
                at={**at, "site": "blocks.0.attention"},
                slug="logits",
                title=f"Largest attention logit of the first block, learning rate {at['lr']:g}",
                y_title="Largest logit",
                log=True,
                caption=f"Largest over all blocks and the whole run: {said} (geometric means).",
            ),
            self.curves(evidence, "loss", at=at, slug="loss"),
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate losses, logits and weights at every rate, and the largest usable rates."""
        return [
            self.grid_table(
                [HELD_OUT, LOGIT, WEIGHT],
                evidence,
                rows={"arm": list(self.ARMS), "lr": evidence.settings["lrs"]},
                title="How runs end, by learning rate",
                caption="Logits are geometric means. A run that diverged has the loss of chance.",
            ),
            largest_table(evidence, self.wording.arms),
        ]


def _loss(name: str, at: Mapping[str, Any], claim: str, **rule: Any) -> Contrast:
    """Return the contrast of held-out losses without the norm and with it."""
    judged: dict[str, Any] = {
        "margin": 0.05,
        "margin_reason": "a twentieth of a nat is a tenth of what these runs gain",
    }
    if rule:
        judged = {**rule, "margin_reason": "three hundredths of a nat are what a few more steps bring"}
    return Contrast(
        HELD_OUT,
        "none",
        "qk",
        at=at,
        name=name,
        claim=claim,
        says="the held-out loss is {effect} without the norm on queries and keys",
        comparative=("higher", "lower"),
        **judged,
    )


def _logit(evidence: Evidence, **where: Any) -> Floats:
    found = evidence.select(probe=PROBE, name="largest_logit", **where).filter(pl.col("value").is_finite())
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(evidence.per_seed(found, pl.col("value").max())))


def _weight(evidence: Evidence, **where: Any) -> Floats:
    """Return per seed the largest weight of a query, mean over blocks and the last quarter of the readings."""
    found = evidence.select(probe=PROBE, name="largest_weight", **where)
    late = found.filter(pl.col("step") >= 0.75 * int(evidence.settings["steps"]))
    return evidence.per_seed(late)


def _sensitivity(evidence: Evidence, **where: Any) -> Floats:
    """Return per seed the mean over rates of the held-out loss, less the least (Wortsman et al. 2023, section 2)."""
    losses = np.array([HELD_OUT(evidence, lr=lr, **where) for lr in evidence.settings["lrs"]])
    return np.asarray(losses.mean(0) - losses.min(0))


LOGIT = Quantity("largest attention logit of a run", _logit, logs=True, record=(PROBE, "largest_logit"))
WEIGHT = Quantity("largest weight of a query, at the end", _weight, record=(PROBE, "largest_weight"))
SENSITIVITY = Quantity("mean held-out loss over rates less the best", _sensitivity, unit="nats", held_out=True)
