"""Question 5: does the network train faster?"""

from collections.abc import Iterable, Sequence
from typing import Any

from normscope.comparing.quantities import UNIT_OF_LOSS, end_loss, mean_loss
from normscope.comparing.question import AbstractQuestion, Pair
from normscope.plots import Figure
from normscope.stats.decide import FEWEST_SEEDS
from normscope.studies import Best, Contrast, Evidence, last

_DECADE = 10.0  # an axis is logarithmic where losses span as much
_BY_CHOICE = last("choice_loss", probe="evaluation")


class TrainingSpeed(AbstractQuestion):
    """Does the network train faster?

    ## Question
    Whether the training loss falls faster in one arm, at the learning rate of the set-up; and with several learning
    rates, at each arm's own best.

    ## Method
    The mean training loss over all steps, which is the area under the loss curve over its length, and the mean of the
    last tenth of the steps. A run that diverged counts from then on with the loss that it began with. The own best
    learning rate of an arm is that with the lowest loss at the end on one half of the evaluation batches; training
    losses are reported.

    ## Threats
    Few steps tell of the beginning of training only. At one learning rate an arm may train slowly because the rate
    suits the other arm: give several by ``--rates``.
    """

    CODE = "speed"
    NUMBER = 5
    ASKS = "does the network train faster {first} than {second}?"
    CLAIM = "The network trains faster {first} than {second}."
    TILE = "Speed"
    MARGIN = 0.05
    MARGIN_REASON = "runs that differ by less than 5 % in their mean loss are read as one curve"
    BOTH_LEARN = False

    def contrasts(self, evidence: Evidence, pair: Pair) -> Iterable[Contrast]:
        """Yield the mean loss and the loss at the end, at the same rate and at own best rates."""
        rates = {"same": 1.0} | ({"own": Best("rate", _BY_CHOICE)} if len(evidence.settings["rates"]) > 1 else {})
        for rate in rates.values():
            for quantity, what in ((mean_loss(), "mean over all steps"), (end_loss(), "last tenth of the steps")):
                yield Contrast(
                    quantity,
                    pair.second,
                    pair.first,
                    at={"rate": rate},
                    conditions={"steps": what},
                    effect=lambda other, own: (other - own) / abs(other),
                    scale="difference",
                    unit="%",
                    labels=(pair.words[1], pair.words[0]),
                    comparative=("lower", "higher"),
                    says=f"the training loss is {{effect}} {pair.words[0]} than {pair.words[1]}",
                )

    def lacks(self, evidence: Evidence) -> str:
        """Say that no arm trains at all, so that none trains faster."""
        learning = [arm for arm in self.arms if self.verdict_of(self.learns(arm), evidence).outcome.in_favour]
        return "" if learning or len(evidence.seeds) < FEWEST_SEEDS else "the loss falls in no arm"

    def figures(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Figure]:
        """Draw the training loss, and the loss on evaluation data."""
        found = [self._drawn(evidence, "training", "Training loss")]
        if len(evidence.select(probe="evaluation", name="loss")):
            said = "In evaluation mode, on every second batch of the evaluation data."
            found.append(self._drawn(evidence, "evaluation", "Evaluation loss", caption=said))
        return found

    def _drawn(self, evidence: Evidence, probe: str, title: str, **changes: Any) -> Figure:
        values = evidence.select(probe=probe, name="loss", rate=1.0)["value"].drop_nans()
        low, high = (float(end) if isinstance(end, float) else 0.0 for end in (values.min(), values.max()))
        spans = 0 < _DECADE * low <= high
        titles = {"title": title, "y_title": f"{title}, {UNIT_OF_LOSS}", "slug": f"{probe}-loss"}
        return self.curves(evidence, "loss", probe=probe, at={"rate": 1.0}, log=spans, **titles, **changes)
