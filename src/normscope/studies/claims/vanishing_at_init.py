"""Do gradients vanish at the start of training, with and without batch norm?"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from normscope.plots import Figure, Table, by_depth
from normscope.records import Cell, Record
from normscope.studies import AbstractStudy, Contrast, Evidence, presets
from normscope.studies.case_question import CaseQuestion
from normscope.studies.figures import theory_table
from normscope.studies.lab.chain import growth, theory, theory_without_norm
from normscope.studies.lab.growth import (
    CLOSER,
    RATE,
    ROUNDING,
    STEADY,
    closer_to_one,
    compared_words,
    independence_of_scale,
    records_of,
    typical_rate,
)

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

ACTIVATIONS = {"relu": "rectifiers", "tanh": "tanh", "sigmoid": "sigmoids"}


class VanishingAtInit(AbstractStudy):
    r"""Batch norm mitigates vanishing gradients at the start of training.

    ## Claim
    "Does it mitigate or not the vanishing and/or exploding gradients?" (comment under the answer to "What is the effect
    of batch normalization on the gradient?"). Without a norm gradients vanish where weights are small or activations
    saturate (Glorot & Bengio 2010); batch norm at He's scale makes them explode instead (Yang et al. 2019).

    ## Method
    Random chains of 20 layers of 256 on Gaussian inputs, batches of 128, with a random gradient at the end, as in
    exploding-gradient-at-init. Weights are 0.5, 1 and 2 times the usual ones (He's for rectifiers, variance 1/width for
    tanh and sigmoids), with and without batch norm in front of each activation. The growth is the factor by which the
    mean squared gradient at the pre-activations grows per layer toward the input, from the slope of its logarithm over
    the middle layers. The effect is by how much nearer to 1 it is with batch norm: the size of its logarithm without a
    norm minus that with batch norm, so that growth .25 and growth 4 are equally far from 1. The headline is the
    rectifier network with half of He's weights, where gradients vanish without a norm. Also tried: the other scales and
    activations. Claims of their own: with batch norm the growth does not depend on the scale of the weights (an
    identity: the norm divides the scale out); with batch norm the gradient keeps its size, within 1.05 per layer; the
    growths are those of theory, within 5 %.

    ## Prediction
    Without a norm $s^2$ per layer for rectifiers (.25, 1, 4 at s = .5, 1, 2), for tanh and sigmoids
    $s^2 E[\varphi'^2]$ at the variance that the layer settles at; with batch norm $\pi/(\pi-1)$ for
    rectifiers, 1.18 for tanh and 1.03 for sigmoids in large batches, whatever s. So vanishing is cured at the start and
    a mild explosion is left, which makes batch norm worse than no norm for rectifiers at He's scale.

    ## Threats
    One step of a random network: what training makes of an explosion is in exploding-gradient-in-training. A random
    gradient at the end knows nothing of the values; real ones do a little. The norms have no eps: with torch's 1e-5 the
    growth depends on the scale where the variance of the pre-activations comes near it. Biases are 0.
    """

    CODE = "vanishing-at-init"
    CARD = 42
    TOPIC = "gradient"
    READS_DATA = False
    SOURCES = (
        "Q&A on the gradient, comment",
        "Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks",
        "Yang et al. 2019 (arXiv:1902.08129), theorems 7 to 9, figure 1",
    )
    CLAIM = "Batch norm mitigates vanishing and exploding gradients at the start of training."
    ON_A_CASE = CaseQuestion("gradients")
    ENDPOINT = "How much nearer to 1 the growth of the squared gradient is with batch norm, half of He's scale"
    MARGIN = math.log(STEADY)
    MARGIN_REASON = "1.05 per layer is less than a factor of three over the 20 layers"
    ARMS = {"none": "no norm", "batch": "batch norm"}
    POINTS = {"activation": "activations", "scale": "scales"}
    CONDITIONS = {"activation": "{} activations", "scale": "initial weights {:g} times the usual"}
    PRESETS = presets(
        quick={
            "width": 256,
            "depth": 20,
            "batch": 128,
            "activations": list(ACTIVATIONS),
            "scales": [0.5, 1.0, 2.0],
        },
        full={"width": 1000, "depth": 50, "batch": 256},
    )

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Run one random chain; the weights of all cells of a seed differ in their scale alone."""
        settings = cell.settings
        yield from records_of(
            cell,
            growth(
                cell.seed,
                width=settings["width"],
                depth=settings["depth"],
                batch=settings["batch"],
                activation=str(cell.point["activation"]),
                norm=cell.arm == "batch",
                scale=float(cell.point["scale"]),
            ),
        )

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield how much nearer to 1 the growth is with batch norm; the scale, the explosion left, and theory."""
        activations, scales = evidence.settings["activations"], evidence.settings["scales"]
        for activation in activations:
            for scale in scales:
                at = {"activation": activation, "scale": scale}
                yield Contrast(
                    RATE,
                    "none",
                    "batch",
                    at=at,
                    scale="log-ratio",
                    effect=closer_to_one,
                    name=f"{activation}, scale {scale:g}",
                    says=compared_words(*(typical_rate(evidence, arm=arm, **at) for arm in self.ARMS)),
                    comparative=CLOSER,
                )
        for activation in activations:
            yield Contrast(
                independence_of_scale(scales),
                "batch",
                at={"activation": activation},
                exact_within=ROUNDING,
                name=f"any scale, {activation}",
                claim="With batch norm the growth does not depend on the scale of the initial weights.",
                says=f"the growth is the same at {scales[0]:g} to {scales[-1]:g} times the usual scale ({{effect}})",
            )
        for activation in activations:
            yield Contrast(
                RATE,
                "batch",
                1.0,
                at={"activation": activation, "scale": 1.0},
                scale="log-ratio",
                unit="per layer",
                equal_within=self.MARGIN,
                labels=("", "no growth"),
                name=f"explosion left, {activation}",
                claim="With batch norm the squared gradient keeps its size from layer to layer.",
                says="with batch norm the squared gradient changes by {effect} toward the input",
            )
        yield from self._theory(evidence)

    def _theory(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield measured growth against theory, with batch norm at one scale, where all are alike."""
        for arm, activation, scale, expected in _expected(evidence):
            yield Contrast(
                RATE,
                arm,
                expected,
                at={"activation": activation, "scale": scale},
                scale="log-ratio",
                equal_within=self.MARGIN,
                margin_reason="theory is for infinite width, and for sigmoids and tanh for infinite batches",
                labels=("", "theory"),
                name=f"theory, {arm}, {activation}, {scale:g}",
                claim="The growth is that of theory.",
                says=f"the growth is {{effect}} the {expected:.3g} per layer of theory with {self.ARMS[arm]}",
            )

    def here(self, evidence: Evidence) -> str:
        """Say which chains the numbers are about; no data is used."""
        return f"random chains of {evidence.settings['depth']} dense layers, Gaussian inputs"

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the squared gradient by layer at the smallest scale, for every activation."""
        scale = evidence.settings["scales"][0]
        return [
            by_depth(
                evidence.select(probe="chain", name="squared_gradient", activation=activation, scale=scale),
                y="squared_gradient",
                slug=f"by-depth-{activation}",
                title=f"Squared gradient at each layer, {ACTIVATIONS.get(activation, activation)}, weights {scale:g} "
                "times the usual",
                y_title="Mean squared gradient, last layer 1",
                arms=list(self.ARMS),
                labels=self.ARMS,
                caption=", ".join(
                    f"{typical_rate(evidence, arm=arm, activation=activation, scale=scale):.3g} per layer toward the "
                    f"input with {words}"
                    for arm, words in self.ARMS.items()
                )
                + ".",
            )
            for activation in evidence.settings["activations"]
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the growth at every scale, and against theory."""
        return [
            self.grid_table(
                RATE,
                evidence,
                rows={"activation": evidence.settings["activations"], "scale": evidence.settings["scales"]},
                columns={"arm": list(self.ARMS)},
                title="Growth of the squared gradient per layer toward the input",
                heads={"scale": "Weights, times the usual"},
            ),
            theory_table(
                (
                    f"growth, {ACTIVATIONS.get(activation, activation)}, {self.ARMS[arm]}, scale {scale:g}",
                    RATE(evidence, arm=arm, activation=activation, scale=scale),
                    expected,
                )
                for arm, activation, scale, expected in _expected(evidence)
            ),
        ]


def _expected(evidence: Evidence) -> Iterator[tuple[str, str, float, float]]:
    """Yield (arm, activation, scale, growth per layer in theory)."""
    settings = evidence.settings
    for activation in settings["activations"]:
        for scale in settings["scales"]:
            expected = theory_without_norm(activation, scale=scale, depth=settings["depth"])
            yield "none", activation, scale, expected
        finite = settings["batch"] if activation == "relu" else None
        yield "batch", activation, 1.0, theory(activation, finite)
