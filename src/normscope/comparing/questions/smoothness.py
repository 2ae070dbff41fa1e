"""Question 3: is the loss smoother along the gradient?"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from normscope.comparing.quantities import UNIT_OF_LOSS, not_read
from normscope.comparing.question import AbstractQuestion, Pair, Reading
from normscope.plots import Figure, Table, landscape_band
from normscope.studies import Contrast, Evidence, Quantity, mean_log

MATCHINGS = {
    "same-step": "the same step sizes",
    "relative-step": "the same steps relative to the weights",
    "predicted-decrease": "the same predicted decrease",
}
_SMALLER = ("smaller", "larger")
#: What is read along the gradient: in words, by the condition that names it, and compared.
_MEASURES = {
    "loss_range": ("range of the loss", "", ("narrower", "wider")),
    "loss_log_range": (
        "logarithm of the largest over the smallest loss",
        "the range relative to the loss",
        _SMALLER,
    ),
    "gradient_difference_relative": (
        "largest change of the gradient over its length",
        "the change of the gradient",
        _SMALLER,
    ),
    "effective_beta": ("largest change of the gradient per distance", "effective beta", _SMALLER),
}


class Smoothness(AbstractQuestion):
    r"""Is the loss smoother along the gradient?

    ## Question
    Whether the loss takes a narrower range of values along the gradient, and whether the gradient changes less there.

    ## Method
    Some six times in a run, on the step's own batch, the loss and its gradient are taken along the gradient at a grid
    of distances: half to four times the learning rate (the same step sizes, as in the source), steps of the same length
    relative to the weights, and steps that to first order lower the loss by the same share. A run's number is the
    geometric mean over its readings, of the range of the loss; of the logarithm of the largest over the smallest loss;
    of the largest change of the gradient over its length; and of effective beta, the largest change of the gradient per
    distance, over a dense grid too.

    ## Threats
    Three matchings are three questions, and the source asked one of them. A network whose loss has come down has less
    of it left to range over: the range relative to the loss is there for that. The line along one gradient is not the
    landscape, and a spike between two points of the grid is missed.
    """

    CODE = "smoothness"
    NUMBER = 3
    ASKS = "is the network's loss smoother along the gradient {first} than {second}?"
    CLAIM = "The network's loss is smoother along the gradient {first} than {second}."
    TILE = "Smoothness"
    READINGS = (Reading("landscape", "some"),)
    SOURCES = ("Santurkar et al. 2018 (arXiv:1805.11604), sections 3.1 and 3.2, figure 4",)
    MARGIN = math.log(1.5)
    MARGIN_REASON = "the source's figure shows bands that differ several times; half as wide again is not seen"

    def contrasts(self, evidence: Evidence, pair: Pair) -> Iterable[Contrast]:
        """Yield the range of the loss at the same step sizes, as the source has it; other matchings and measures."""
        if not pair.is_read(evidence, "landscape"):
            return
        first, second = pair.words
        for name, (words, measure, comparative) in _MEASURES.items():
            for matching, how in MATCHINGS.items():
                yield Contrast(
                    _quantity(name, matching),
                    pair.second,
                    pair.first,
                    at={"rate": 1.0},
                    conditions={"matching": how} | ({"measure": measure} if measure else {}),
                    scale="log-ratio",
                    comparative=comparative,
                    labels=(second, first),
                    says=f"the {words} along the gradient is {{effect}} {first} than {second}",
                )

    def figures(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Figure]:
        """Draw the losses met along the gradient, and how much the gradient changes there."""
        read = evidence.select(probe="landscape", rate=1.0)
        if read.is_empty():
            return []
        common: dict[str, Any] = {
            "log": True,
            "matchings": list(MATCHINGS),
            "arms": list(self.arms),
            "labels": {**self.arms, **{key: words.capitalize() for key, words in MATCHINGS.items()}},
        }
        return [
            landscape_band(
                read,
                title="Losses met along the gradient",
                slug="loss-band",
                y_title=f"Loss on the step's batch, {UNIT_OF_LOSS}",
                **common,
            ),
            landscape_band(
                read,
                title="How much the gradient changes along itself, relative to its length",
                slug="gradient-band",
                low=None,
                high="gradient_difference_relative",
                y_title="Largest |g(s) - g| / |g|",
                **common,
            ),
        ]

    def tables(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Table]:
        """Tabulate every measure at every matching."""
        read = set(evidence.select(probe="landscape", rate=1.0)["arm"].unique().to_list())
        if not read:
            return []
        return [
            self.grid_table(
                [_quantity(name, matching) for name in _MEASURES for matching in MATCHINGS],
                evidence,
                rows={},
                columns={"arm": [arm for arm in self.arms if arm in read]},
                at={"rate": 1.0},
                title="Along the gradient",
                caption=f"Geometric means over the readings of a run and {len(evidence.seeds)} seeds.",
            )
        ]

    def lacks(self, evidence: Evidence) -> str:
        """Say why the loss along the gradient is not known."""
        return not_read(evidence, "landscape")


def _quantity(name: str, matching: str) -> Quantity:
    words = f"{_MEASURES[name][0]}, {MATCHINGS[matching]}"
    return mean_log(f"{name}@{matching}", words, probe="landscape")
