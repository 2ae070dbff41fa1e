"""Question 11: train against eval."""

from collections.abc import Iterable, Sequence

from normscope.comparing.ends import ALIKE_REASON, OWN_RATE, arms_table, at_end, gap, loss_margin, share_of_gap
from normscope.comparing.question import AbstractQuestion, Pair
from normscope.plots import Figure, Table
from normscope.studies import Contrast, Evidence

#: Causes in the order in which they are changed.
_CAUSES = (
    "dropout and other noise",
    "batch statistics",
    "other code that depends on the mode",
    "other data",
    "domain shift",
    "running statistics",
    "evaluation depends on the batch",
    "averaged weights",
)
#: The claim on each cause that norms bring, and what is said of it.
_OF_NORMS = {
    "running statistics": (
        "The running statistics make evaluation worse.",
        "by running statistics, in the place of those of the training data, the loss of evaluation is {effect}",
    ),
    "batch statistics": (
        "Normalizing by other statistics than the batch's own raises the loss.",
        "by statistics of the training data, in the place of the batch's own, the loss of training is {effect}",
    ),
}


class EvaluationGap(AbstractQuestion):
    """Does the network lose more in evaluation against training?

    ## Question
    Whether the loss rises more from training, on its data and in its mode, to evaluation, on its data and in eval mode;
    and what of it the norms bring, by their statistics.

    ## Method
    At the end of training one thing is changed after another: dropout and other noise are switched off; norms use
    statistics of the training data instead of the batch's; all other code is in eval mode; the data are those of
    evaluation, at first with statistics of their own, then with those of the training data; then with the running
    statistics; where outputs depend on the other samples, batches were mixed until then, and are those of evaluation
    from here on; then weights are the averaged ones. The shares add up to the gap. A share is judged against nothing in
    the network as it is.

    ## Threats
    The shares depend on the order of the changes. Dropout makes the loss of training higher than that of evaluation, so
    a gap can be negative. Running statistics lag behind while weights still move fast, as in a run of few steps.
    """

    CODE = "gap"
    NUMBER = 11
    ASKS = "does the network lose more from training to evaluation {first} than {second}?"
    CLAIM = "The network loses more from training to evaluation {first} than {second}."
    MARGIN = 0.0  # each contrast has its own, in the unit of the loss
    MARGIN_REASON = ALIKE_REASON
    BOTH_LEARN = False  # the gap of two arms says so itself; a share of one arm needs no other to learn

    def contrasts(self, evidence: Evidence, pair: Pair) -> Iterable[Contrast]:
        """Yield the gap in one arm against the other, and in the first what the statistics of its norms do."""
        margin = loss_margin(evidence, pair.first)
        first, second = pair.words
        yield Contrast(
            gap(),
            pair.first,
            pair.second,
            at=OWN_RATE,
            labels=pair.words,
            margin=margin,
            comparative=("more", "less"),
            says=f"the loss rises by {{effect}} from training to evaluation {first} than {second}",
            premises=(self.learns(pair.first), self.learns(pair.second)),
        )
        if not pair.headline:
            return
        for cause, (claim, says) in _OF_NORMS.items():
            if evidence.select(probe="gap", name=cause, arm=pair.first).height:
                yield Contrast(
                    share_of_gap(cause, cause),
                    pair.first,
                    at=OWN_RATE,
                    labels=(first, ""),
                    claim=claim,
                    margin=margin,
                    comparative=("higher", "lower"),
                    says=f"{first}, {says}",
                )

    def lacks(self, evidence: Evidence) -> str:
        """Say that no run came to its end."""
        if not evidence.select(probe="gap", name="eval").height:
            return "no run came to its end with a finite loss"
        return ""

    def figures(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Figure]:
        """Draw nothing: the table of shares answers."""
        return ()

    def tables(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Table]:
        """Tabulate all shares of all arms."""
        present = evidence.select(probe="gap")["name"].unique().to_list()
        steps = {"train": "loss of training"}
        steps |= {cause: f"through {cause}" for cause in _CAUSES if cause in present} | {"eval": "loss of evaluation"}
        quantities = [at_end(name, words, probe="gap") for name, words in steps.items()]
        caption = "Means over seeds at the end. From top to bottom one thing is changed after another."
        return [arms_table("From training to evaluation", quantities, evidence, self.arms, caption)]
