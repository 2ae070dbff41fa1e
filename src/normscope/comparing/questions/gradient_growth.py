"""Question 1: do gradients vanish or explode with depth?"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from normscope.comparing import layers
from normscope.comparing.quantities import not_read
from normscope.comparing.question import AbstractQuestion, Pair, Reading
from normscope.plots import Figure, Table, by_layer, curves, number
from normscope.stats import interval
from normscope.studies import Contrast, Evidence
from normscope.studies.evidence import Floats

_STEADY = 1.05  # a layer: within this the gradient keeps its size
_FAR = 100.0  # over all layers, of the squared gradient: ten times the gradient
_WEIGHTS = {"start": "initial weights", "end": "trained weights"}


class GradientGrowth(AbstractQuestion):
    r"""Do gradients vanish or explode with depth?

    ## Question
    Whether the gradient keeps its size on its way from the output to the input, at the first step and after training,
    and how much the layers' weights differ in the size of their gradients.

    ## Method
    The growth is the factor by which the mean square of $\partial L / \partial h_l$, the gradient at a layer's
    output, grows per layer toward the input, from the least-squares slope of its logarithm over the layers in the order
    of their first use. Layers whose outputs differ in the number of positions are not compared with each other, and
    where they differ in width the square is summed over it. The effect is by how much nearer to 1 the growth is, as a
    ratio: growth 1/4 and growth 4 are equally far from 1. For the weights: the norm of the gradient of a layer's
    parameters, the largest over the smallest of all layers. After training both are means over the readings of the last
    quarter of the steps.

    A table holds the growth at the first step against theory, where theory knows the layers: in a ``Sequential``,
    linear layers or convolutions that keep the number of positions, with ReLU, or batch norm and ReLU, between them.
    Without norms it is half of the mean square of the weights times their number of inputs, since ReLU lets half pass
    (1/6 a layer with torch's initial weights, 1 with He's), less what goes into the padding; with batch norm
    $\pi/(\pi-1)$, a little more in small batches of a linear chain, and next to padding what the mean field of
    ``comparing.mean_field`` gives.

    ## Threats
    With skips and branches the order of first use is not a depth, and the growth is a mean over both ways. A gradient
    that vanishes may do no harm where the optimizer divides by its size. Theory is of wide layers and random weights.
    In layers of some hundred units the lengths of the samples drift apart from layer to layer, and the growth with
    batch norm is up to 1 % below it (1.46 for 1.47). Of layers with skips, other norms, other activations, strides or
    pooling between them, and of models that call activations as functions, theory says nothing.
    """

    CODE = "gradients"
    NUMBER = 1
    ASKS = "does the network keep its gradients from vanishing or exploding better {first} than {second}?"
    CLAIM = "The network keeps its gradients from vanishing or exploding better {first} than {second}."
    TILE = "Gradient growth"
    READINGS = (Reading("gradient_flow", "often"),)
    SOURCES = (
        "Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks",
        "Yang et al. 2019, A Mean Field Theory of Batch Normalization (arXiv:1902.08129), theorems 7 to 9",
    )
    MARGIN = math.log(_STEADY)
    MARGIN_REASON = "1.05 a layer is less than a factor of three over 20 layers"
    BOTH_LEARN = False

    def contrasts(self, evidence: Evidence, pair: Pair) -> Iterable[Contrast]:
        """Yield how near to 1 the growth is, and how much layers differ, at the first step and after training."""
        if not pair.is_read(evidence, "gradient_flow"):
            return
        first, second = pair.words
        for when, weights in _WEIGHTS.items():
            learn = (self.learns(pair.first), self.learns(pair.second)) if when == "end" else ()
            common: dict[str, Any] = {"at": {"rate": 1.0}, "conditions": {"weights": weights}, "premises": learn}
            growths, spread = layers.growth(when), layers.spread(when)  # type: ignore[arg-type]
            found = [growths(evidence, arm=arm, rate=1.0) for arm in (pair.first, pair.second)]
            through = [layers.reach(evidence, arm=arm, rate=1.0) for arm in (pair.first, pair.second)]
            said = [_fate(*each) for each in zip(found, through, strict=True)]
            yield Contrast(
                growths,
                pair.first,
                pair.second,
                scale="log-ratio",
                effect=_nearer_to_one,
                comparative=("less", "more"),
                says=f"a layer changes the squared gradient {{effect}} {first} than {second}{_factors(*found)}: "
                f"toward the input it {said[0]} {first}; {second} it {said[1]}",
                **common,
            )
            yield Contrast(
                spread,
                pair.second,
                pair.first,
                scale="log-ratio",
                claim="The layers' weights differ less in the size of their gradients {first} than {second}.",
                comparative=("smaller", "larger"),
                says=f"the largest gradient of a layer's weights over the smallest is {{effect}} {first} than {second}",
                labels=(second, first),
                margin=math.log(1.5),
                margin_reason="layers of one network differ by half in their number of weights alone",
                **common,
            )

    def figures(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Figure]:
        """Draw the gradient at each layer at the first and the last reading, that of its weights, and the growth."""
        read = evidence.select(probe="gradient_flow", rate=1.0)
        if read.is_empty():
            return []
        common: dict[str, Any] = {"arms": list(self.arms), "labels": self.arms, "log": True}
        order = layers.order_of(evidence, rate=1.0)
        start = layers.growth("start")
        said = {
            words: start.text(evidence, arm=arm, rate=1.0)
            for arm, words in self.arms.items()
            if np.isfinite(start(evidence, arm=arm, rate=1.0)).any()
        }
        caption = "At the first step the squared gradient grows a layer toward the input by the factor "
        return [
            by_layer(read, y="output_norm", title="Gradient at the output of each layer", order=order, **common),
            by_layer(read, y="norm", title="Gradient of each layer's weights", order=order, **common),
            curves(
                layers.growth_by_step(evidence, rate=1.0),
                y="growth",
                title="Growth of the squared gradient a layer toward the input",
                slug="growth",
                y_title="Growth a layer, as a factor",
                reference={"keeps its size": 1.0},
                caption=f"{caption}{', '.join(f'{text} {words}' for words, text in said.items())}." if said else "",
                **common,
            ),
        ]

    def tables(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Table]:
        """Hold the growth at the first step against theory, for the arms of which theory speaks."""
        held = [each for arm, words in self.arms.items() for each in layers.theories_of(evidence, arm, words)]
        caption = (
            "Geometric means over seeds, with the 95 % interval of what was measured. Theory is of wide layers. With "
            "batch norm it is held against the layers from the second of each stretch on, for of the input of the "
            "first it knows nothing."
        )
        columns = ("Growth a layer", "Measured", "Interval", "Theory", "Ratio")
        rows = tuple(_against_theory(each) for each in held)
        return [Table("Against theory", columns, rows, caption)] if rows else []

    def lacks(self, evidence: Evidence) -> str:
        """Say why gradients cannot be compared from layer to layer."""
        if why := not_read(evidence, "gradient_flow"):
            return why
        arms = [arm for arm in self.arms if layers.reach(evidence, arm=arm, rate=1.0)]
        return "" if len(arms) > 1 else "no two layers have outputs of one size, so their gradients cannot be compared"


def _against_theory(held: layers.Theory) -> tuple[str, ...]:
    """Return a row of the table that holds the growth against theory."""
    logs = np.log(np.stack([held.measured, held.expected]))
    measured, expected = logs[:, np.isfinite(logs).all(axis=0)]
    found = interval(measured, scale="log-ratio")
    between = "" if found.n == 1 else f"{math.exp(found.low):.4f} to {math.exp(found.high):.4f}"
    growth, theory = math.exp(found.point), math.exp(float(expected.mean()))
    return held.words, f"{growth:.4f}", between, f"{theory:.4f}", f"{growth / theory:.4f}"


def _nearer_to_one(own: Floats, other: Floats) -> Floats:
    """Return by how much nearer to 1 the first of two growths is; both are logarithms."""
    return np.asarray(np.abs(other) - np.abs(own))


def _fate(logs: Floats, layers_between: int) -> str:
    """Say what becomes of the squared gradient on its way to the input."""
    kept = logs[np.isfinite(logs)]
    if not len(kept):
        return "is not known"
    mean = float(kept.mean())
    growth, whole = number(math.exp(mean)), math.exp(min(max(mean * layers_between, -700.0), 700.0))
    if abs(mean) <= math.log(_STEADY):
        return f"keeps its size ({growth} times a layer)"
    said = f"grows {growth} times a layer" if mean > 0 else f"shrinks to {growth} of itself a layer"
    if whole > _FAR:
        return f"{said} and explodes ({number(whole)} times over {layers_between} layers)"
    return f"{said} and vanishes ({number(whole)} of itself over {layers_between} layers)" if whole < 1 / _FAR else said


def _factors(first: Floats, second: Floats) -> str:
    """Say by what factor each arm changes the squared gradient a layer, up or down: what the effect compares."""
    both = [np.abs(growth[np.isfinite(growth)]) for growth in (first, second)]
    if not all(map(len, both)):
        return ""
    own, other = (number(math.exp(float(each.mean()))) for each in both)
    return f" (by the factor {own} against {other}, up or down)"
