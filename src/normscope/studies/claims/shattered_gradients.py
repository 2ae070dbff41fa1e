"""Do gradients of deep networks turn into white noise, and what do skips and batch norm change?"""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from normscope.plots import Figure, Table, by_depth
from normscope.records import Cell, Record
from normscope.stats import slope_per_seed
from normscope.studies import AbstractStudy, Contrast, Evidence, Quantity, presets
from normscope.studies.evidence import Floats
from normscope.studies.lab.arms import recorder
from normscope.studies.lab.tangents import autocorrelation, start, tangents, theory

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset

#: Of each arm: whether it has batch norm, and the factor on a layer that is added to what it was given; 0 for no skips.
CHAINS = {
    "plain": (False, 0.0),
    "plain batch": (True, 0.0),
    "skips": (False, 0.1),
    "skips batch": (True, 0.1),
    "full skips batch": (True, 1.0),
}
INPUTS = {"line": "inputs on a line", "random": "independent inputs"}
#: Layers over which the fall of the correlation is read: later ones lie in the noise of a finite width.
EARLY = 5


class ShatteredGradients(AbstractStudy):
    r"""Gradients of deep plain networks turn into white noise; skips with batch norm slow that.

    ## Claim
    "The correlation between gradients in standard feedforward networks decays exponentially with depth resulting in
    gradients that resemble white noise whereas, in contrast, the gradients in architectures with skip-connections are
    far more resistant to shattering, decaying sublinearly" (Balduzzi et al. 2017, abstract). Their theorems, second
    hand: $2^{-L}$ in plain networks, about $1/(\beta\sqrt L)$ with skips, batch norm and branches times $\beta$.

    ## Method
    Random chains of rectifiers of width 256, He's weights, biases 0. Inputs lie on a line (256 points from -2 to 2
    times one vector, plus another), or are independent. The gradient at an input is the derivative of all outputs with
    respect to the place on the line; statistics of batch norm are constants in it, as in evaluation. Its
    autocorrelation is the mean cosine of the gradients at two inputs, over pairs less than a sixteenth of the line
    apart, or over all pairs of independent inputs. With skips a layer is $h + \beta W \mathrm{relu}(n(h))$, n being
    batch norm or nothing; without, $W \mathrm{relu}(n(h))$. The headline compares 24 layers with skips ($\beta = .1$)
    and without, both with batch norm, on the line; .1 matters. Also tried: without a norm, at 50 layers, independent
    inputs. Claims of their own: batch norm slows the shattering of plain networks (on the line); in plain networks the
    correlation of independent inputs halves with each layer (over the first five, within a tenth); with skips and batch
    norm it falls as one over the root of the depth; and theory, within 15 %.

    ## Prediction
    Skips hold the correlation above .8 at 24 layers. Batch norm makes plain networks shatter sooner: it keeps
    different inputs uncorrelated, so that each layer halves, while without it all inputs grow alike and the
    correlation falls as a power of the depth only (product of $1 - \arccos(c_l)/\pi$). With skips and batch norm,
    $\prod (1+\beta^2/2q_l)/(1+\beta^2/q_l)$ with $q_{l+1} = q_l + \beta^2(1-1/\pi)$: a slope of -.68 on the
    depth from 10 to 50 layers with full branches, for the subtraction of the mean leaves less variance than the root of
    the depth assumes.

    ## Threats
    One step of a random network: what training makes of it is not asked. Correlations below about .01 are noise of the
    finite width. The line is short in a space of 256; the source takes the gradient of one output.
    """

    CODE = "shattered-gradients"
    CARD = 46
    TOPIC = "gradient"
    EXTENSION = True
    SOURCES = ("Balduzzi et al. 2017 (arXiv:1702.08591), abstract; theorems second hand",)
    CLAIM = "Skips with batch norm keep the gradients of deep networks from turning into white noise."
    ON_A_CASE = "no question reads correlations of gradients between inputs"
    ENDPOINT = "Autocorrelation of input gradients along a line, 24 layers, with less without skips, batch norm in both"
    MARGIN = 0.1
    MARGIN_REASON = "a tenth of the whole way from white noise to gradients that are all alike"
    ARMS = {
        "plain": "plain, no norm",
        "plain batch": "plain, batch norm",
        "skips": "skips, no norm",
        "skips batch": "skips, batch norm",
        "full skips batch": "skips with full branches, batch norm",
    }
    POINTS = {"inputs": "inputs"}
    CONDITIONS = {"inputs": ""}
    PRESETS = presets(
        quick={"inputs": list(INPUTS), "width": 256, "points": 256, "depth": 50, "judged": 24},
        full={"width": 1000, "depth": 100},
    )

    def run_cell(self, cell: Cell, data: "Dataset", device: str) -> Iterable[Record]:
        """Run one random chain and record the autocorrelation behind every layer; arms share their weights."""
        record, settings = recorder(cell, "gradients"), cell.settings
        line = cell.point["inputs"] == "line"
        points, width = int(settings["points"]), int(settings["width"])
        h, tangent = start(cell.seed, points, width, line=line)
        reach = points // 16 if line else points - 1
        for index, values in enumerate(tangents(cell.seed, h, tangent, int(settings["depth"]), *CHAINS[cell.arm])):
            yield record("correlation", autocorrelation(values, reach), site=f"layer.{index}")

    def contrasts(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield skips against none; what batch norm does to plain networks, and laws, are claims of their own."""
        judged, depth = evidence.settings["judged"], evidence.settings["depth"]
        conditions = [("line", judged), ("line", depth), ("random", judged), ("random", depth)]
        for second, words in (("plain batch", "skips"), ("plain", "skips and batch norm than with neither")):
            for inputs, at in conditions:
                yield Contrast(
                    correlation(at),
                    "skips batch",
                    second,
                    at={"inputs": inputs},
                    conditions={"inputs": INPUTS[inputs], "depth": f"{at} layers"},
                    name=f"skips batch and {second}, {inputs}, {at}",
                    says=f"the autocorrelation of the gradient is {{effect}} with {words}",
                    comparative=("higher", "lower"),
                )
        yield from self._plain(evidence)

    def _plain(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield what batch norm does to networks without skips, and whether their correlation halves."""
        judged, depth = evidence.settings["judged"], evidence.settings["depth"]
        for at in sorted({min(8, judged), judged, depth}):
            yield Contrast(
                correlation(at),
                "plain batch",
                "plain",
                at={"inputs": "line"},
                conditions={"inputs": INPUTS["line"], "depth": f"{at} layers"},
                name=f"batch norm, {at}",
                claim="Batch norm slows the shattering of gradients in networks without skips.",
                says="the autocorrelation of the gradient is {effect} with batch norm than without",
                comparative=("higher", "lower"),
            )
        for arm in ("plain", "plain batch"):
            yield Contrast(
                RATE,
                arm,
                0.5,
                at={"inputs": "random"},
                scale="log-ratio",
                equal_within=math.log(1.1),
                margin_reason="a tenth a layer is a factor of eleven over 25 layers",
                labels=("", "a half"),
                name=f"halves, {arm}",
                claim="In networks without skips the correlation of gradients halves with each layer.",
                says="each layer leaves {effect} a half of the correlation",
            )
        yield from self._laws(evidence)

    def _laws(self, evidence: Evidence) -> Iterator[Contrast]:
        """Yield the fall with depth where there are skips, against one over the root and against theory."""
        depth = evidence.settings["depth"]
        yield Contrast(
            SLOPE,
            "full skips batch",
            -0.5,
            at={"inputs": "random"},
            equal_within=0.1,
            margin_reason=".1 is a quarter more or less over a tenfold depth",
            labels=("", "one over the root"),
            name="root of the depth",
            claim="With skips and batch norm the correlation of gradients falls as one over the root of the depth.",
            says="the slope of the correlation on the depth, both logarithms, differs by {effect} from the -0.5 of "
            "one over the root",
        )
        for arm in ("skips batch", "full skips batch"):
            yield Contrast(
                correlation(depth),
                arm,
                theory(depth, CHAINS[arm][1]),
                at={"inputs": "random"},
                scale="log-ratio",
                equal_within=math.log(1.15),
                margin_reason="theory is for infinite width and independent inputs",
                labels=("", "theory"),
                name=f"theory, {arm}",
                claim="With skips and batch norm the correlation is that of the recursion derived here.",
                says=f"the correlation at {depth} layers is {{effect}} that of theory",
            )

    def here(self, evidence: Evidence) -> str:
        """Say which chains the numbers are about; no data is used."""
        return f"random chains of rectifiers of width {evidence.settings['width']}"

    def figures(self, evidence: Evidence) -> Sequence[Figure]:
        """Draw the autocorrelation by layer."""
        judged = evidence.settings["judged"]
        return [
            by_depth(
                evidence.select(probe="gradients", name="correlation", inputs=inputs),
                y="correlation",
                slug=f"by-depth-{inputs}",
                title=f"Autocorrelation of the gradient behind each layer, {INPUTS[inputs]}",
                y_title="Mean cosine",
                log=False,
                arms=list(self.ARMS),
                labels=self.ARMS,
                caption=f"At {judged} layers: "
                + ", ".join(
                    f"{correlation(judged).text(evidence, arm=arm, inputs=inputs)} {words}"
                    for arm, words in self.ARMS.items()
                )
                + ".",
            )
            for inputs in evidence.settings["inputs"]
        ]

    def tables(self, evidence: Evidence) -> Sequence[Table]:
        """Tabulate the autocorrelation at several depths."""
        depths = sorted({1, 2, 4, 8, evidence.settings["judged"], evidence.settings["depth"]})
        return [
            self.grid_table(
                [correlation(depth) for depth in depths if depth <= evidence.settings["depth"]],
                evidence,
                rows={"inputs": evidence.settings["inputs"], "arm": list(self.ARMS)},
                title="Autocorrelation of the gradient by depth",
                labels=INPUTS,
            )
        ]


def correlation(depth: int) -> Quantity:
    """Return the quantity of the autocorrelation behind so many layers."""
    return Quantity(
        f"autocorrelation of the gradient, {depth} layers", lambda evidence, **where: _at(evidence, depth, **where)
    )


def _at(evidence: Evidence, depth: int, **where: Any) -> Floats:
    chosen = evidence.select(probe="gradients", name="correlation", site=f"layer.{depth - 1}", **where)
    return evidence.per_seed(chosen)


def _log_slope(evidence: Evidence, layers: Sequence[int], x: Sequence[float], **where: Any) -> Floats:
    """Return per seed the slope of the log correlation over layers; NaN where a correlation is not positive."""
    values = np.array([_at(evidence, layer, **where) for layer in layers]).T
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(values)
    slopes, whole = np.full(len(logs), np.nan), np.isfinite(logs).all(1)
    if whole.any():
        slopes[whole] = slope_per_seed(x, logs[whole])
    return slopes


def _rate(evidence: Evidence, **where: Any) -> Floats:
    layers = range(1, 1 + min(EARLY, int(evidence.settings["depth"])))
    return np.exp(_log_slope(evidence, layers, list(layers), **where))


def _power(evidence: Evidence, **where: Any) -> Floats:
    depth = int(evidence.settings["depth"])
    layers = range(max(1, depth // 5), depth + 1)
    return _log_slope(evidence, layers, [math.log(layer) for layer in layers], **where)


RATE = Quantity("share of the correlation that a layer leaves", _rate)
SLOPE = Quantity("slope of the log correlation on the log depth", _power)
