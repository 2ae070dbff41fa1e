"""Question 12: what does it cost?"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from normscope.comparing.arms import ASIDE
from normscope.comparing.ends import OWN_RATE, arms_table, at_end
from normscope.comparing.question import AbstractQuestion, Pair
from normscope.plots import Figure, Table
from normscope.studies import Contrast, Evidence, Quantity


def _scaled(name: str, words: str, factor: float) -> Quantity:
    """Return the logarithm of a cost, in units that people read."""
    cost = at_end(name, words, probe="cost", logs=True)
    return replace(cost, read=lambda evidence, **where: cost(evidence, **where) + math.log(factor))


_TIME = _scaled("seconds", "milliseconds of a training step", 1e3)
_MEMORY = _scaled("bytes", "megabytes that the tensors of a training step hold at most", 1e-6)


class Cost(AbstractQuestion):
    """What does a training step cost?

    ## Question
    How much longer a training step takes, and how much more memory it needs.

    ## Method
    After all training, in one process and on one thread, the steps of all arms are timed in turn, anew at every seed:
    the median of eight. The memory is the most that tensors made in a step hold at one time. Both are compared as
    ratios.

    ## Threats
    What else runs on the machine lengthens steps; the arms take turns so that it meets all of them. Times on another
    machine, another device or more threads differ. Norms that are written as modules of Python cost more than fused
    ones.
    """

    CODE = "cost"
    NUMBER = 12
    ASKS = "does a training step take longer {first} than {second}?"
    CLAIM = "A training step takes longer {first} than {second}."
    MARGIN = math.log(1.05)
    MARGIN_REASON = "steps that differ by less than 5 % in time make no difference to a day's work"
    BOTH_LEARN = False

    def contrasts(self, evidence: Evidence, pair: Pair) -> Iterable[Contrast]:
        """Yield the time of a step, and its memory; an arm that stands aside costs what its making costs."""
        if pair.second in ASIDE and not pair.headline:
            return
        first, second = pair.words
        yield Contrast(
            _TIME,
            pair.first,
            pair.second,
            at=OWN_RATE,
            scale="log-ratio",
            labels=pair.words,
            comparative=("longer", "shorter"),
            says=f"a training step takes {{effect}} {first} than {second}",
        )
        yield Contrast(
            _MEMORY,
            pair.first,
            pair.second,
            at=OWN_RATE,
            scale="log-ratio",
            labels=pair.words,
            claim=f"A training step needs more memory {first} than {second}.",
            margin=math.log(1.05),
            margin_reason="with 5 % less, a batch may be larger by one sample in twenty",
            counted=True,
            comparative=("larger", "smaller"),
            says=f"the memory of a training step is {{effect}} {first} than {second}",
        )

    def lacks(self, evidence: Evidence) -> str:
        """Say that nothing was timed."""
        if not evidence.select(probe="cost", name="seconds").height:
            return "steps were not timed: run the same comparison again to its end"
        return ""

    def figures(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Figure]:
        """Draw nothing: two numbers an arm are a table."""
        return ()

    def tables(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Table]:
        """Tabulate time and memory of a step."""
        if self.lacks(evidence):
            return []
        arms = {arm: words for arm, words in self.arms.items() if arm not in ASIDE}
        return [
            arms_table("A training step", [_TIME, _MEMORY], evidence, arms, "Geometric means over seeds; one thread.")
        ]
