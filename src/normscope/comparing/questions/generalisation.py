"""Question 8: does it generalise differently?"""

from collections.abc import Iterable, Sequence

from normscope.comparing.ends import ALIKE_REASON, OWN_RATE, arms_table, at_end, loss_margin, share_of_gap
from normscope.comparing.quantities import UNIT_OF_LOSS
from normscope.comparing.question import AbstractQuestion, Pair
from normscope.plots import Figure, Table
from normscope.studies import Contrast, Evidence

_OTHER_DATA = share_of_gap("data that it was not trained on", "other data", "domain shift")
_EVALUATION = at_end("eval", "loss on evaluation data", probe="gap")
_ACCURACY = at_end("accuracy", "accuracy on evaluation data", probe="evaluation", unit="points")
_NOISE = "The noise of the batches lets the network generalise better."
_POINT = 0.01
_POINT_REASON = "one sample in a hundred"


class Generalisation(AbstractQuestion):
    """Does the network generalise better?

    ## Question
    Whether the loss rises less from the data that the network was trained on to other data; and what of that is the
    noise that batch norm gets from its batches.

    ## Method
    At the end of training the step from the loss of training to that of evaluation is taken apart. What counts here is
    the share of other data alone: noise of training is off, and norms use the statistics of the training data on both.
    Beside it, the loss and the accuracy on evaluation data. With the arm ``population``, whose batch norms use the
    statistics of many more samples, the share of that arm against the network's own says what the noise of the batches
    does.

    ## Threats
    An arm that fits its training data better has more to lose on others: see both losses in the table. A few hundred
    steps are the beginning of training, when little is learnt by heart. The data of evaluation are the same at every
    seed, so the intervals speak of them.
    """

    CODE = "generalisation"
    NUMBER = 8
    ASKS = "does the network generalise better {first} than {second}?"
    CLAIM = "The network generalises better {first} than {second}."
    MARGIN = 0.0  # each contrast has its own, in the unit of the loss
    MARGIN_REASON = ALIKE_REASON

    def contrasts(self, evidence: Evidence, pair: Pair) -> Iterable[Contrast]:
        """Yield the rise of the loss on other data, the accuracy on them, and what of it is noise of the batches."""
        noise = _NOISE if pair.second == "population" and pair.first == "own" else ""
        first, second = pair.words
        yield Contrast(
            _OTHER_DATA,
            pair.second,
            pair.first,
            at=OWN_RATE,
            labels=(second, first),
            claim=noise,
            margin=loss_margin(evidence, pair.first),
            comparative=("less", "more"),
            says=f"on data that the network was not trained on, the loss rises by {{effect}} {first} than {second}",
        )
        yield Contrast(
            _EVALUATION,
            pair.second,
            pair.first,
            at=OWN_RATE,
            conditions={"measure": "the loss itself on evaluation data"},
            labels=(second, first),
            claim=noise,
            margin=loss_margin(evidence, pair.first),
            comparative=("lower", "higher"),
            says=f"the loss is {{effect}} {first} than {second}",
        )
        if evidence.select(probe="evaluation", name="accuracy").height:
            yield Contrast(
                _ACCURACY,
                pair.second,  # the sides of the others, so that the measure is all that differs
                pair.first,
                at=OWN_RATE,
                conditions={"measure": "accuracy on evaluation data"},
                effect=lambda other, asked: asked - other,
                labels=(second, first),
                claim=noise,
                margin=_POINT,
                margin_reason=_POINT_REASON,
                comparative=("higher", "lower"),
                says=f"the accuracy is {{effect}} {first} than {second}",
            )

    def lacks(self, evidence: Evidence) -> str:
        """Say that evaluation data are needed."""
        if not evidence.select(probe="evaluation", name="loss").height:
            return "there are no data to evaluate on: give the set-up an `eval_loader`"
        return ""

    def figures(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Figure]:
        """Draw loss and accuracy on evaluation data over steps."""
        found = []
        for name, unit in {"loss": UNIT_OF_LOSS, "accuracy": "as a share"}.items():
            if evidence.select(probe="evaluation", name=name).height:
                title = f"{name.capitalize()} on evaluation data"
                options = {"slug": f"evaluation-{name}", "title": title, "y_title": f"{title}, {unit}"}
                options["caption"] = "In eval mode."
                found.append(self.curves(evidence, name, probe="evaluation", at=OWN_RATE, **options))
        return found

    def tables(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Table]:
        """Tabulate the losses of training and evaluation, and what other data do."""
        if self.lacks(evidence):
            return []
        quantities = [
            at_end("train", "loss of training", probe="gap"),
            _EVALUATION,
            _OTHER_DATA,
        ]
        if evidence.select(probe="evaluation", name="accuracy").height:
            quantities.append(_ACCURACY)
        caption = "Means over seeds at the end."
        if "own" in self.arms and "population" not in self.arms:
            caption += " What of it is the noise of the batches: ask by `--arms own,none,population`."
        return [arms_table("At the end", quantities, evidence, self.arms, caption)]
