"""Question 7: is the minimum flatter?"""

import math
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from normscope.comparing.ends import OWN_RATE, arms_table, at_end, last_records
from normscope.comparing.quantities import not_read
from normscope.comparing.question import AbstractQuestion, Pair, Reading
from normscope.plots import Figure, Table
from normscope.records.answers import capital
from normscope.studies import Contrast, Evidence
from normscope.studies.contrast import Reading as Numbers
from normscope.studies.wording import Wording

_PROBE = "curvature"
_TRAIN, _FROZEN = "norms as in training", "norms with running statistics"
#: Record, what it is, and the mode of the norms; the first decides.
_MEASURES = (
    ("top_eigenvalue@train", "largest eigenvalue of the Hessian", _TRAIN),
    ("top_eigenvalue@frozen", "largest eigenvalue of the Hessian", _FROZEN),
    ("adaptive_sharpness@train", "adaptive sharpness", _TRAIN),
    ("adaptive_sharpness@frozen", "adaptive sharpness", _FROZEN),
)


class Flatness(AbstractQuestion):
    """Is the minimum flatter?

    ## Question
    Whether the loss curves less where training ends.

    ## Method
    At the last step, on its batch: the largest eigenvalue of the Hessian of the loss over all parameters, with the
    norms as in training; also with their running statistics as constants. And the adaptive sharpness, the rise of the
    loss under the worst change of the weights by a given share of their size. Each is compared as a ratio, on a
    logarithmic scale. A number that is not positive has no logarithm: its seed is left out, and said to be. The probe
    reads at the first step and the last; a reading takes as long as 30 to 40 plain steps without norms, and 70 to 120
    in both modes of norms (small dense and convolutional networks).

    ## Threats
    Training that was cut short ends in no minimum. The eigenvalue depends on the scale of the weights: before a norm
    they can be scaled without any change of the outputs, and the eigenvalue changes by the square. The adaptive
    sharpness does not. A loss that is nearly 0 curves little whatever the network. The eigenvalue at a large learning
    rate settles where that rate lets it.
    """

    CODE = "flatness"
    NUMBER = 7
    ASKS = "does training end in a flatter minimum {first} than {second}?"
    CLAIM = "Training ends in a flatter minimum {first} than {second}."
    MARGIN = math.log(1.25)
    MARGIN_REASON = "1.25 times: the largest stable learning rate goes as one over it, and is seldom chosen more finely"
    READINGS = (Reading(_PROBE, "ends", {"measures": ["eigenvalues", "adaptive"]}),)

    def contrasts(self, evidence: Evidence, pair: Pair) -> Iterable[Contrast]:
        """Yield the largest eigenvalue and the adaptive sharpness, with norms as in training and frozen."""
        if not pair.is_read(evidence, _PROBE):
            return
        for name, what, mode in _MEASURES:
            if mode == _FROZEN and not _depends_on_mode(evidence, pair):
                continue
            yield Contrast(
                at_end(name, f"{what} at the last step", probe=_PROBE, logs=True),
                pair.second,
                pair.first,
                at=OWN_RATE,
                conditions={"measure": what, "mode": mode},
                scale="log-ratio",
                labels=(pair.words[1], pair.words[0]),
                comparative=("smaller", "larger"),
                reason=partial(_numbers, wording=self.wording),
                says=f"the sharpness at the end is {{effect}} {pair.words[0]} than {pair.words[1]}",
            )

    def lacks(self, evidence: Evidence) -> str:
        """Say that no curvature was read, or that none is positive."""
        if why := not_read(evidence, _PROBE):
            return why
        found = evidence.select(probe=_PROBE, name=_MEASURES[0][0], **OWN_RATE)["value"]
        if not len(found):
            return "the curvature could not be read in any run"
        return "" if (found > 0).any() else "no largest eigenvalue is positive, so there is no ratio of two"

    def figures(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Figure]:
        """Draw the largest eigenvalue at the first step and the last."""
        return [
            self.curves(
                evidence,
                _MEASURES[0][0],
                probe=_PROBE,
                at=OWN_RATE,
                title=f"Largest eigenvalue of the Hessian, {_TRAIN}",
                y_title="Largest eigenvalue, loss per squared weight",
                log=True,
            )
        ]

    def tables(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Table]:
        """Tabulate every measure, and whether the eigenvalue is more than a lower bound."""
        quantities = [at_end(name, f"{what}, {mode}", probe=_PROBE) for name, what, mode in _MEASURES]
        quantities.append(at_end("converged@train", "share of eigenvalues that converged", probe=_PROBE))
        caption = "Means over seeds at the last step. An eigenvalue that did not converge is a lower bound."
        arms = {arm: words for arm, words in self.arms.items() if evidence.select(probe=_PROBE, arm=arm).height}
        return [arms_table("Curvature", quantities, evidence, arms, caption)]


def _depends_on_mode(evidence: Evidence, pair: Pair) -> bool:
    """Say whether the mode of the norms makes a difference in an arm: without running statistics it makes none."""
    arms = [pair.first, pair.second]
    one, other = (last_records(evidence, _PROBE, name, arm=arms, **OWN_RATE) for name, *_ in _MEASURES[:2])
    return one.sort("arm", "seed")["value"].to_list() != other.sort("arm", "seed")["value"].to_list()


def _numbers(numbers: Numbers, wording: Wording) -> str:
    """Say the number of each side, and how many have no logarithm."""
    quantity = numbers.contrast.quantity
    said = f"{capital(quantity.words)}: {wording.numbers(numbers)}."
    probe, name = quantity.record
    values = [
        last_records(numbers.evidence, probe, name, **side.where)["value"] for side in (numbers.first, numbers.second)
    ]
    count = int(np.sum([(each <= 0).sum() for each in values]))
    if not count:
        return said
    are = "is" if count == 1 else "are"
    return f"{said} {count} of the {sum(map(len, values))} values {are} not positive and left out."
