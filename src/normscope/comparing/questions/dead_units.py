"""Question 9: are units dead or saturated?"""

from collections.abc import Iterable, Sequence

from normscope.comparing.ends import OWN_RATE, at_end, last_records
from normscope.comparing.quantities import not_read
from normscope.comparing.question import AbstractQuestion, Pair, Reading
from normscope.plots import Figure, by_layer
from normscope.studies import Contrast, Evidence

_PROBE = "saturation"
#: Record, what it is a share of, and under which condition; the first that is not 0 throughout decides.
_MEASURES = {
    "silent_share": ("silent units", "on the last batch"),
    "output_tail": ("saturated outputs", "tanh and sigmoid"),
    "dead_share": ("units that were never active", "since the first step"),
}


class DeadUnits(AbstractQuestion):
    """Are fewer units dead or saturated?

    ## Question
    Which share of the units gives nothing on, or hardly responds, at the end of training.

    ## Method
    Of ReLU and its relatives: the share of units whose input is not positive for any sample of the last batch, which
    decides; and the share that was active at no step that was read, which leaves out units that died on the way. Of
    tanh and sigmoid: the share of outputs within 1.5 % of their range from an end, which decides where no rectifier is
    silent. Mean over layers; a share that is 0 in all arms is left out.

    ## Threats
    A unit that is silent on one batch may answer to another: the smaller the batch, the more such units. Activations
    that are called as functions, and are no modules, cannot be heard. Where norms stand behind activations they do
    nothing for them.
    """

    CODE = "units"
    NUMBER = 9
    ASKS = "are fewer units dead or saturated {first} than {second}?"
    CLAIM = "Fewer units are dead or saturated {first} than {second}."
    MARGIN = 0.01
    MARGIN_REASON = "one unit in a hundred is no loss of capacity"
    READINGS = (Reading(_PROBE, "often"),)

    def contrasts(self, evidence: Evidence, pair: Pair) -> Iterable[Contrast]:
        """Yield the shares that the network's activations have."""
        if not pair.is_read(evidence, _PROBE):
            return
        for name in _telling(evidence) or list(_MEASURES)[:1]:
            what, when = _MEASURES[name]
            yield Contrast(
                at_end(name, f"share of {what}", probe=_PROBE, unit="points"),
                pair.second,
                pair.first,
                at=OWN_RATE,
                conditions={"measure": when},
                labels=(pair.words[1], pair.words[0]),
                comparative=("lower", "higher"),
                says=f"the share of {what} is {{effect}} {pair.words[0]} than {pair.words[1]}",
            )

    def lacks(self, evidence: Evidence) -> str:
        """Say that there is no activation to hear, or not one dead unit."""
        heard = any(evidence.select(probe=_PROBE, name=name).height for name in _MEASURES)
        if _PROBE in evidence.settings["readings"] and not heard:
            return "no activation that is a module was heard in this network; functions cannot be: use nn.ReLU()"
        if why := not_read(evidence, _PROBE):
            return why
        return "" if _telling(evidence) else "in no arm is a single unit dead or saturated"

    def figures(self, evidence: Evidence, pairs: Sequence[Pair]) -> Sequence[Figure]:
        """Draw the deciding share by layer."""
        found = []
        for name in _telling(evidence)[:2]:
            what, when = _MEASURES[name]
            frame = evidence.select(probe=_PROBE, name=name, **OWN_RATE)
            title = f"Share of {what} ({when}), by layer"
            found.append(
                by_layer(frame, y=name, title=title, slug=f"{name}-by-layer", arms=list(self.arms), labels=self.arms)
            )
        return found


def _telling(evidence: Evidence) -> list[str]:
    """Return the measures that are not 0 in every arm, in order."""
    return [name for name in _MEASURES if (last_records(evidence, _PROBE, name, **OWN_RATE)["value"] > 0).any()]
