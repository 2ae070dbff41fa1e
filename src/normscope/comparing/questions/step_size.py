"""Question 2: how large a step lowers the loss?"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

from normscope.comparing.described import MODEL
from normscope.comparing.quantities import middle_log, middle_logs, not_read, read_in
from normscope.comparing.question import AbstractQuestion, Pair, Reading
from normscope.plots import Figure, Table
from normscope.studies import Contrast, Evidence, Quantity, mean
from normscope.studies.evidence import Floats

_HALF = 0.5  # of the readings of a run, from which on its median has no bound

SAFE = middle_log("safe_step", "learning rate up to which a step along the gradient lowers the loss", probe="descent")
TO_SAFE = middle_log("step_to_safe", "learning rate of the set-up over that one", probe="descent")
RAISED = mean("raised", "share of steps that raised the loss of their own batch", probe="descent")


class StepSize(AbstractQuestion):
    r"""How large a step lowers the loss?

    ## Question
    Whether a step along the gradient can be longer before it raises the loss of its own batch, and whether the steps
    that training makes raise that loss less often.

    ## Method
    By the quadratic model of the loss, a step of learning rate s along the gradient g lowers it up to
    $s = 2\lVert g\rVert^2 / g^T H g$, the safe step, taken some six times in a run on the step's own batch. A
    run's number is the median of its readings: where $g^T H g \le 0$ the model has no bound, and a reading
    without bound counts as longer than all others. Networks whose weights differ in size are also compared by the
    length of that step over the length of all weights, $s \lVert g\rVert / \lVert\theta\rVert$. Steps that
    raised the loss are those of the optimizer itself, with momentum and all.

    ## Threats
    The quadratic model is of the neighbourhood of the weights; a loss may rise earlier. Where half of a run's readings
    have no bound there is no number. The batch is one, and with momentum or Adam the step is not along its gradient.
    """

    CODE = "step"
    NUMBER = 2
    ASKS = "can the network take longer steps {first} than {second} and still lower its loss?"
    CLAIM = "The network can take longer steps {first} than {second} and still lower its loss."
    READINGS = (Reading("descent", "some"),)
    SOURCES = ("Nocedal and Wright 2006, Numerical Optimization, section 4.1",)
    MARGIN = math.log(1.2)
    MARGIN_REASON = "learning rates are chosen by steps of a fifth or more"

    def contrasts(self, evidence: Evidence, pair: Pair) -> Iterable[Contrast]:
        """Yield the longest safe step, the same relative to the weights, and the share of steps that raise the loss."""
        if not pair.is_read(evidence, "descent"):
            return
        first, second = pair.words
        common: dict[str, Any] = {"at": {"rate": 1.0}, "comparative": ("longer", "shorter"), "scale": "log-ratio"}
        typical = [SAFE.text(evidence, arm=arm, rate=1.0) for arm in (pair.first, pair.second)]
        rates = f": a learning rate of {typical[0]} against {typical[1]}" if all(typical) else ""
        yield Contrast(
            SAFE,
            pair.first,
            pair.second,
            says=f"the longest step along the gradient that lowers the loss is {{effect}} {first} than {second}{rates}",
            **common,
        )
        relative = relative_step()
        if any(np.isfinite(relative(evidence, arm=arm, rate=1.0)).any() for arm in (pair.first, pair.second)):
            yield Contrast(
                relative,
                pair.first,
                pair.second,
                conditions={"measure": "the step relative to the weights"},
                says=f"relative to the weights, the longest step along the gradient that lowers the loss is {{effect}} "
                f"{first} than {second}",
                **common,
            )
        yield Contrast(
            RAISED,
            pair.second,
            pair.first,
            at={"rate": 1.0},
            claim="Fewer of the steps of training raise the loss of their own batch {first} than {second}.",
            says=f"the share of steps that raise the loss of their own batch is {{effect}} {first} than {second}",
            comparative=("lower", "higher"),
            labels=(second, first),
            unit="points",
            margin=0.1,
            margin_reason="one step in ten; a run is read some six times",
        )

    def figures(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Figure]:
        """Draw the safe step over steps, and the learning rate over it."""
        if evidence.select(probe="descent", rate=1.0).is_empty():
            return []
        common: dict[str, Any] = {"probe": "descent", "at": {"rate": 1.0}, "log": True}
        title = "Learning rate up to which a step along the gradient lowers the loss"
        above = {"too long above": 1.0}
        return [
            self.curves(evidence, "safe_step", slug="safe-step", title=title, **common),
            self.curves(
                evidence,
                "step_to_safe",
                slug="step-to-safe",
                title="Learning rate of the set-up over that one",
                reference=above,
                **common,
            ),
        ]

    def tables(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Table]:
        """Tabulate the safe step, the learning rate over it, and the share of steps that raised the loss."""
        read = set(evidence.select(probe="descent", rate=1.0)["arm"].unique().to_list())
        quantities = [SAFE, TO_SAFE, RAISED, Quantity("share of readings without bound", _unbounded)]
        if not read:
            return []
        return [
            self.grid_table(
                quantities,
                evidence,
                rows={"arm": [arm for arm in self.arms if arm in read]},
                at={"rate": 1.0},
                title="How long a step may be",
                caption=f"Medians over the readings of a run; of learning rates geometric means over "
                f"{len(evidence.seeds)} seeds, of shares means.",
            )
        ]

    def lacks(self, evidence: Evidence) -> str:
        """Say why the safe step is not known."""
        if why := not_read(evidence, "descent"):
            return why
        read = [arm for arm in self.arms if read_in(evidence, "descent", arm)]
        known = [arm for arm in read if np.isfinite(SAFE(evidence, arm=arm, rate=1.0)).any()]
        bounded = [arm for arm in read if arm not in known and (_unbounded(evidence, arm=arm, rate=1.0) >= _HALF).any()]
        if len(known) > 1 or not bounded:
            return ""
        words = " and ".join(self.arms[arm] for arm in bounded)
        return f"{words}, the loss does not curve upward along the gradient, so its quadratic model bounds no step"


def relative_step() -> Quantity:
    """Return the longest safe step over the norm of all weights; the gradient's norm is that of the landscape probe."""

    def read(evidence: Evidence, **where: Any) -> Floats:
        def values(probe: str, name: str) -> pl.DataFrame:
            found = evidence.select(probe=probe, name=name, site="", **where)
            return found.select("seed", "step", pl.col("value").alias(name))

        joined = values("descent", "safe_step")
        for probe, name in (("landscape", "gradient_norm"), (MODEL, "weight_norm")):
            joined = joined.join(values(probe, name), on=["seed", "step"])
        length = pl.col("safe_step") * pl.col("gradient_norm") / pl.col("weight_norm")
        return middle_logs(evidence, joined.with_columns(length.alias("value")))

    return Quantity("longest step along the gradient that lowers the loss, relative to the weights", read, logs=True)


def _unbounded(evidence: Evidence, **where: Any) -> Floats:
    found = evidence.select(probe="descent", name="safe_step", **where).filter(pl.col("value").is_not_nan())
    return evidence.per_seed(found, pl.col("value").is_infinite().cast(pl.Float64).mean())
