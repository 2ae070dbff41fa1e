"""Question 10: are gamma and beta used?"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import polars as pl

from normscope.comparing.ends import OWN_RATE, at_end, last_records
from normscope.comparing.quantities import end_loss, not_read
from normscope.comparing.question import AbstractQuestion, Pair, Reading
from normscope.plots import Figure, Table, by_layer, natural_key, number
from normscope.studies import Contrast, Evidence, typical
from normscope.studies.contrast import Reading as Numbers

_PROBE = "affine_drift"
_FIXED = "fixed-affine"
_PARTS = {"weight": "gains", "bias": "shifts"}
_UNDONE = 0.05


class Affine(AbstractQuestion):
    """Are gamma and beta used?

    ## Question
    Whether the gains (gamma) and shifts (beta) of the norms move away from the values that they begin with, in the
    network as it is; whether they come to undo the normalization; and what it costs to keep them where they are.

    ## Method
    At the last step that was read: the root mean square over channels of how far gains and shifts have moved, mean over
    layers. Of batch norms, how far the gain is from the deviation that the norm divides by, and the shift from the mean
    that it subtracts, both in deviations, as the median over channels: at 0 the norm would undo itself. With the arm
    ``fixed-affine``, the training loss of the last tenth of the steps without learning gains and shifts.

    ## Threats
    That they move does not show that it matters: the arm ``fixed-affine`` does. Few steps, and a small learning rate,
    move them little. A gain before a rectifier and a norm can be taken over by the next weights.
    """

    CODE = "affine"
    NUMBER = 10
    ASKS = "does the network {first} use gains and shifts (gamma and beta)?"
    CLAIM = "The gains and shifts of the norms move away from the values that they begin with."
    MARGIN = 0.02
    MARGIN_REASON = "less than half of what the deviation of a batch of 256 samples varies by, 4 %"
    READINGS = (Reading(_PROBE, "often"),)
    BOTH_LEARN = False  # of one arm alone, which must learn

    def contrasts(self, evidence: Evidence, pair: Pair) -> Iterable[Contrast]:
        """Yield the drift of gains and of shifts, whether they undo the norm, and what fixing them costs."""
        if not pair.headline:
            return
        base = Contrast(
            at_end("", "", probe=_PROBE),
            pair.first,
            at=OWN_RATE,
            scale="value",
            labels=(pair.words[0], ""),
            premises=(self.learns(pair.first),),
        )
        for part, words in _PARTS.items():
            yield replace(
                base,
                quantity=at_end(f"{part}_drift", f"distance of the {words} from where they began", probe=_PROBE),
                conditions={"part": words} if part == "bias" else {},
                says=f"{words}, which begin at {_start(evidence, pair.first, part)} on average, move by {{effect}}",
                reason=partial(_most, part=part),
            )
        for part, words in _PARTS.items():
            name = f"{part}_identity_gap"
            if evidence.select(probe=_PROBE, name=name, arm=pair.first).height:
                yield replace(
                    base,
                    quantity=at_end(name, f"distance of the {words} from undoing the norm", probe=_PROBE),
                    conditions={"part": words} if part == "bias" else {},
                    claim="Gains and shifts do not undo the normalization.",
                    margin=_UNDONE,
                    margin_reason="a gain within 5 % of the deviation gives it back",
                    says=f"{words} are {{effect}} deviations away from undoing the norm, on the average over layers",
                )
        if _FIXED in self.arms and pair.first == "own":
            yield self._cost_of_fixing(pair)

    def _cost_of_fixing(self, pair: Pair) -> Contrast:
        fixed = self.arms[_FIXED]
        return Contrast(
            end_loss(),
            _FIXED,
            pair.first,
            at=OWN_RATE,
            effect=lambda other, own: (other - own) / abs(other),
            unit="%",
            claim="Gains and shifts that learn lower the training loss.",
            labels=(fixed, pair.words[0]),
            margin=0.05,
            margin_reason="runs that differ by less than 5 % in their loss are read as one curve",
            comparative=("lower", "higher"),
            says=f"the training loss at the end is {{effect}} {pair.words[0]} than {fixed}",
            premises=(self.learns(pair.first),),
        )

    def lacks(self, evidence: Evidence) -> str:
        """Say that the network has no gains and shifts."""
        first = next(iter(evidence.settings["arms"]))
        if _PROBE not in evidence.settings["readings"]:
            return not_read(evidence, _PROBE)
        if not evidence.select(probe=_PROBE, arm=first).height:
            return f"the network {self.arms.get(first, first)} has no norm with gain and shift"
        return ""

    def figures(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Figure]:
        """Draw how far gains and shifts have moved, by layer."""
        if self.lacks(evidence):
            return []
        names = [f"{part}_drift" for part in _PARTS]
        frame = evidence.select(probe=_PROBE, arm=pairs[0].first, **OWN_RATE).filter(pl.col("name").is_in(names))
        return [
            by_layer(
                frame,
                y=[name for name in names if name in frame["name"].unique().to_list()],
                title="How far gains and shifts have moved, by layer",
                slug="affine-by-layer",
                arms=list(self.arms),
                labels=self.arms,
            )
        ]

    def tables(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Table]:
        """Tabulate drift and distance from undoing the norm, layer by layer."""
        if self.lacks(evidence):
            return []
        names = [f"{part}_{what}" for what in ("drift", "identity_gap") for part in _PARTS]
        frames = {name: last_records(evidence, _PROBE, name, arm=pairs[0].first, **OWN_RATE) for name in names}
        sites = sorted({site for frame in frames.values() for site in frame["site"].to_list()}, key=natural_key)
        rows = tuple(
            (site, *(typical(evidence.per_seed(frame.filter(pl.col("site") == site))) for frame in frames.values()))
            for site in sites
        )
        heads = ("Norm", "Gain moved by", "Shift moved by", "Gain from undoing", "Shift from undoing")
        caption = "Means over seeds at the last step that was read; the last two in deviations, of batch norms alone."
        if _FIXED not in self.arms:
            caption += f" What it costs to keep them where they are: ask by `--arms own,none,{_FIXED}`."
        return [Table("Gains and shifts", heads, rows, caption)]


def _start(evidence: Evidence, arm: str, part: str) -> str:
    """Write the mean of gains or shifts at the first step, over layers and seeds."""
    frame = evidence.select(probe=_PROBE, name=f"{part}_mean", arm=arm, **OWN_RATE)
    if not frame.height:
        return ""
    return typical(evidence.per_seed(frame.filter(pl.col("step") == frame["step"].min())))


def _most(numbers: Numbers, part: str) -> str:
    """Say how far gains or shifts have moved, and in which layer they moved most."""
    where = numbers.first.where
    frame = last_records(numbers.evidence, _PROBE, f"{part}_drift", **where)
    said = (
        f"{_PARTS[part].capitalize()} moved by {typical(numbers.evidence.per_seed(frame))} on the average over layers"
    )
    sites = frame.group_by("site").agg(pl.col("value").mean()).sort("value", "site", descending=True)
    if sites.height < 2:
        return f"{said}."
    most = sites.row(0, named=True)
    return f"{said}, most in the norm `{most['site']}`: by {number(most['value'])}."
