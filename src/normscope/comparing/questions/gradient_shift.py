"""Question 4: does the gradient of a layer shift less under the updates of the layers before it?"""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import polars as pl

from normscope.comparing.layers import modules_of, order_of
from normscope.comparing.quantities import not_read
from normscope.comparing.question import AbstractQuestion, Pair, Reading
from normscope.plots import Figure, by_layer, curves
from normscope.studies import Contrast, Evidence, Quantity
from normscope.studies.evidence import Floats

_LENGTHS = math.log(1.2)
_LENGTHS_REASON = "a fifth of the length, well below the differences between layers"


class GradientShift(AbstractQuestion):
    r"""Does the gradient of a layer shift less under the updates of the layers before it?

    ## Question
    Whether internal covariate shift is less: the change of a layer's gradient by the update of the layers before it;
    and, as a claim of its own, whether the distributions of the layers' outputs move less while the network trains.

    ## Method
    Some six times in a run, for every layer that the update of others reaches, the gradient G is compared with G', the
    gradient on the same batch once the layers before have made the optimizer's update. The source measures the length
    of $G' - G$, which decides here, and the cosine of both. A length also differs where gradients are longer, and
    so the length relative to that of G is judged too. Lengths are geometric means over layers and readings, cosines
    means.

    The path length of a distribution is the sum over readings of the distances (Wasserstein-1) by which the values of a
    unit on a fixed batch move, in interquartile ranges. It is that of the last reading, a geometric mean over layers:
    of the outputs of the layers that bear weight, and of those of the norms behind them, which the activations see.

    ## Threats
    To first order the shift is curvature times the length of the update: it vanishes with the learning rate in every
    arm. Two things are called covariate shift, and they need not go together. A path grows with the number of readings
    where distributions wobble; all arms are read equally often.
    """

    CODE = "shift"
    NUMBER = 4
    ASKS = "do the updates of earlier layers shift the network's gradients less {first} than {second}?"
    CLAIM = "The updates of earlier layers shift the network's gradients less {first} than {second}."
    TILE = "Shift"
    READINGS = (Reading("covariate_shift", "some"), Reading("distribution_shift", "some"))
    SOURCES = (
        "Santurkar et al. 2018 (arXiv:1805.11604), definition 2.1 and figure 3",
        "Ioffe and Szegedy 2015 (arXiv:1502.03167), sections 2 and 4.1",
    )
    MARGIN = _LENGTHS
    MARGIN_REASON = _LENGTHS_REASON

    def contrasts(self, evidence: Evidence, pair: Pair) -> Iterable[Contrast]:
        """Yield the length of the shift as the source defines it, its other measures, and the path of distributions."""
        if not pair.is_read(evidence, "covariate_shift"):
            return
        first, second = pair.words
        shifts = f"the updates of earlier layers shift the network's gradients {{effect}} {first} than {second}"
        at: dict[str, Any] = {"at": {"rate": 1.0}}
        lengths: dict[str, Any] = {"scale": "log-ratio", "comparative": ("less", "more"), "labels": (second, first)}
        yield Contrast(SHIFT, pair.second, pair.first, says=shifts, **lengths, **at)
        yield Contrast(
            RELATIVE,
            pair.second,
            pair.first,
            conditions={"measure": "the shift relative to the gradient's length"},
            says=shifts,
            **lengths,
            **at,
        )
        yield Contrast(
            COSINE,
            pair.second,
            pair.first,
            effect=lambda other, own: own - other,
            labels=(second, first),
            conditions={"measure": "the cosine"},
            says="the cosine of a layer's gradient before and after the updates of earlier layers (1: no shift) "
            f"is {{effect}} {first} than {second}",
            comparative=("higher", "lower"),
            margin=0.05,
            margin_reason="a twentieth of the way from gradients that do not change (1) to unrelated ones (0)",
            **at,
        )
        yield from self._distributions(evidence, pair, lengths | at)

    def _distributions(self, evidence: Evidence, pair: Pair, common: dict[str, Any]) -> Iterable[Contrast]:
        if evidence.select(probe="distribution_shift", rate=1.0).is_empty():
            return
        first, second = pair.words
        shared, seen = _sites(evidence, pair)
        for sites, what in ((shared, "the outputs of layers"), (seen, "the inputs of activations")):
            if what == "the inputs of activations" and seen == shared:
                continue
            yield Contrast(
                _path(sites),
                pair.second,
                pair.first,
                claim="The distributions of units move less while the network trains {first} than {second}.",
                conditions={"place": what},
                says=f"while the network trains, the distributions of its units move {{effect}} {first} than {second}",
                **common,
            )

    def figures(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Figure]:
        """Draw the shift over steps and by layer, and the path length of distributions."""
        common: dict[str, Any] = {"arms": list(self.arms), "labels": self.arms}
        found = []
        shown = _shifted(evidence, evidence.select(probe="covariate_shift", rate=1.0))
        if len(shown):
            title, before = "Shift of a layer's gradient", "by the updates of earlier layers"
            kept = "a layer's gradient before and after the updates of earlier layers"
            order = order_of(evidence, rate=1.0)
            found = [
                curves(shown, y=["l2", "relative"], title=f"{title} {before}", slug="shift", log=True, **common),
                curves(shown, y="cosine", title=f"Cosine of {kept}", slug="shift-cosine", **common),
                by_layer(shown, y="relative", title=f"{title} over its length, by layer", order=order, **common),
            ]
        if len(path := evidence.select(probe="distribution_shift", name="path_length", rate=1.0)):
            title = "Path length of the units' distributions, mean over layers and norms"
            found.append(curves(path, y="path_length", title=title, slug="distributions", **common))
        return found

    def lacks(self, evidence: Evidence) -> str:
        """Say why the shift is not known."""
        return not_read(evidence, "covariate_shift")


def _shifted(evidence: Evidence, frame: pl.DataFrame) -> pl.DataFrame:
    """Leave out the layers that nothing comes before in some arm: their shift is 0 there, to the bit, at every reading.

    A layer without gradient has no shift either, but it has layers before it, and is kept.
    """
    read = evidence.select(probe="covariate_shift", name="relative", rate=1.0).with_columns(
        pl.col("value").fill_nan(None)
    )
    largest = read.group_by("arm", "site").agg(pl.col("value").max())
    first = largest.filter(pl.col("value") == 0)["site"].unique().to_list()
    return frame.filter(~pl.col("site").is_in(first))


def _lengths(name: str, evidence: Evidence, **where: Any) -> Floats:
    return evidence.mean_log(_shifted(evidence, evidence.select(probe="covariate_shift", name=name, **where)))


def _cosines(evidence: Evidence, **where: Any) -> Floats:
    found = _shifted(evidence, evidence.select(probe="covariate_shift", name="cosine", **where))
    return evidence.per_seed(found.filter(pl.col("value").is_finite()))


SHIFT = Quantity("shift of a layer's gradient", partial(_lengths, "l2"), logs=True)
RELATIVE = Quantity("shift of a layer's gradient over its length", partial(_lengths, "relative"), logs=True)
COSINE = Quantity("cosine of a layer's gradient before and after", _cosines)


def _sites(evidence: Evidence, pair: Pair) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return, by arm, the layers that both arms have, and the sites whose outputs activations see in their place.

    A norm that is registered right behind a layer stands in the layer's place.
    """
    read = {
        arm: set(evidence.select(probe="distribution_shift", name="path_length", arm=arm, rate=1.0)["site"].to_list())
        for arm in (pair.first, pair.second)
    }
    both = set.intersection(*read.values())
    shared = {arm: sorted(both or sites) for arm, sites in read.items()}
    seen = {}
    for arm, sites in read.items():
        place = {site: index for index, site in enumerate(modules_of(evidence, arm))}
        behind = {place[norm] - 1: norm for norm in sites - set(shared[arm]) if norm in place}
        seen[arm] = [behind.get(place.get(site, -1), site) for site in shared[arm]]
    return shared, seen


def _path(sites: dict[str, list[str]]) -> Quantity:
    """Return the path length of the distributions of some sites, by arm, at the last reading."""

    def read(evidence: Evidence, **where: Any) -> Floats:
        found = evidence.select(probe="distribution_shift", name="path_length", **where)
        found = found.filter(pl.col("site").is_in(sites.get(str(where.get("arm")), [])))
        return evidence.mean_log(found.filter(pl.col("step") == pl.col("step").max().over("seed")))

    return Quantity("path length of a unit's distribution, in interquartile ranges", read, logs=True)
