"""How arms, conditions and contrasts are put into words where a study gives none of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from normscope.plots import effect_words
from normscope.records import Condition, Outcome
from normscope.records.answers import capital
from normscope.studies.contrast import Contrast, Reading, Side
from normscope.studies.quantity import Best
from normscope.studies.sample import Sample

#: Words for the values of points that many studies have; ``{}`` is the value.
CONDITIONS = {
    "lr": "learning rate {:g}",
    "depth": "{} hidden layers",
    "batch": "batches of {}",
    "net": "{} network",
    "scale": "initial weights times {:g}",
    "optimizer": "{}",
    "bits": "float{}",
}
#: What varies between conditions, in words that complete "depends on the ...".
NAMES = {
    "lr": "learning rate",
    "net": "network",
    "batch": "batch size",
    "scale": "initial scale",
    "bits": "precision",
    "arm": "arm",
}
_OWN_BEST = {"lr": "own best learning rates"}
_TURNED = {"at least": "at most", "at most": "at least"}
_JOINED = {"log-ratio": "over", "difference": "minus", "value": "against"}


@dataclass(frozen=True)
class Wording:
    """Words for the arms and conditions of a study.

    Attributes:
        arms: Words for the arms, by their name in the records.
        conditions: Words for the values of points, ``{}`` for the value, by the name of the value; empty leaves it out.
        names: What varies between conditions, in words that complete "depends on the ...", by the name of the value.
    """

    arms: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def conditions_of(self, contrast: Contrast) -> tuple[Condition, ...]:
        """Return what is fixed while the sides of a contrast are compared, in words; the arms too where they differ."""
        found = [(key, self.condition(key, value)) for key, value in contrast.at.items() if key != "arm"]
        found += contrast.conditions.items()
        names = {**NAMES, **self.names}
        first, second = self.sides(contrast)
        found.append(("arms", f"{first} against {second}" if second else first))
        return tuple(Condition(names.get(key, key), value) for key, value in found if value)

    def condition(self, key: str, value: Any) -> str:
        """Name the value of a point: ``"learning rate 0.1"``."""
        if isinstance(value, Best):
            return _OWN_BEST.get(key, f"own best {key}")
        if key == "depth" and value == 0:  # the network's own depth, which is no condition
            return ""
        template = {**CONDITIONS, **self.conditions}.get(key, f"{key} {{}}")
        return template.format(value) if template else ""

    def at(self, point: Mapping[str, Any]) -> str:
        """Name a condition, without the arm: ``"relu network, own best learning rates"``."""
        words = (self.condition(key, value) for key, value in point.items() if key != "arm")
        return ", ".join(word for word in words if word)

    def side(self, side: Side) -> str:
        """Name a side of a contrast."""
        if isinstance(side, str):
            return self.arms.get(side, side)
        if isinstance(side, Mapping):
            arm = self.arms.get(side["arm"], side["arm"]) if "arm" in side else ""
            return ", ".join(word for word in (arm, self.at(side)) if word)
        return "" if side is None else f"{side:g}"

    def sides(self, contrast: Contrast) -> tuple[str, str]:
        """Name both sides of a contrast: its own labels, or those of its arms."""
        given = zip(contrast.labels, (contrast.first, contrast.second), strict=True)
        first, second = (label or self.side(side) for label, side in given)
        return first, second

    def endpoint(self, contrast: Contrast) -> str:
        """Say what a contrast measures, its own words first."""
        if contrast.endpoint:
            said = contrast.endpoint
        else:
            first, second = self.sides(contrast)
            compared = f"{first} {_JOINED.get(contrast.scale, 'against')} {second}" if second else first
            at = self.at(contrast.at)
            said = capital(", ".join(word for word in (contrast.quantity.words, compared, at) if word))
        return f"{said}, for this data set (each seed splits it anew)" if contrast.quantity.held_out else said

    def amount(self, reading: Reading) -> str:
        """Write the effect of a reading in natural units: ``"8.3 times fewer (7.1 to 9.8)"``."""
        comparative, bounded = reading.contrast.comparative, reading.bounded
        if bounded in _TURNED and comparative is not None and reading.effect.point < 0:
            bounded = _TURNED[bounded]  # a size is written, and the word for its direction
        said = effect_words(reading.effect, style="plain", comparative=comparative)
        return f"{bounded} {said}" if bounded and len(reading.kept) else said

    def finding(self, reading: Reading) -> str:
        """Say what was seen as a clause, with the effect in natural units and the condition after it."""
        contrast, amount = reading.contrast, self.amount(reading)
        if contrast.says:
            said = contrast.says.replace("{effect}", amount)
        else:
            first, second = self.sides(contrast)
            compared = f"{first} against {second}" if second else first
            said = f"{', '.join(word for word in (contrast.quantity.words, compared) if word)}: {amount}"
        at = ", ".join(word for word in (self.at(contrast.at), *contrast.conditions.values()) if word)
        return f"{said} [{at}]" if at else said

    def reason(self, reading: Reading) -> str:
        """Say the numbers of a reading in a sentence, the contrast's own words first."""
        contrast = reading.contrast
        if contrast.reason:
            said = contrast.reason if isinstance(contrast.reason, str) else contrast.reason(reading)
        elif contrast.exact_within is not None:
            seeds, allowed = len(reading.values), contrast.exact_within
            said = f"{capital(self.amount(reading))} in {seeds} seeds; {allowed:g} is allowed."
        else:
            said = f"{capital(contrast.quantity.words)}: {self.numbers(reading)}."
        return f"{said} {reading.missing}".strip() if len(reading.kept) else reading.missing

    def numbers(self, reading: Reading) -> str:
        """Write the number of each side: ``"no batch norm 283 (never reached in 2 of 10 runs), batch norm 37"``."""
        contrast = reading.contrast
        samples = zip(self.sides(contrast), (reading.first, reading.second), strict=True)
        said = ", ".join(
            self._number(contrast, label, sample) for label, sample in samples if sample.values is not None
        )
        geometric = contrast.quantity.logs and reading.second.values is not None
        return f"{said} (geometric means)" if geometric else said

    def _number(self, contrast: Contrast, label: str, sample: Sample) -> str:
        if isinstance(sample.values, float):
            number = contrast.quantity.typical(sample.values)
            return f"{label} {number}" if label and label != f"{sample.values:g}" else number
        assert sample.values is not None
        own = (self.condition(key, sample.where[key]) for key, value in contrast.at.items() if isinstance(value, Best))
        notes = [words for words in own if words]
        if sample.never:
            runs, beyond = f"{sample.never} of {len(sample.values)} runs", contrast.quantity.beyond
            notes.append(f"{runs} {beyond}" if beyond else f"never reached in {runs}")
        said = f"{label} {contrast.quantity.typical(sample.values)}".strip()
        return f"{said} ({', '.join(notes)})" if notes else said

    def row(self, contrast: Contrast, reading: Reading, outcome: Outcome) -> tuple[str, ...]:
        """Return the row of a table of contrasts; ``ROW`` has the heads of the columns."""
        first, second = (
            contrast.quantity.typical(sample.values) if sample.values is not None else ""
            for sample in (reading.first, reading.second)
        )
        return self.endpoint(contrast), first, second, self.amount(reading), outcome.value


#: Heads of the columns of a table of contrasts.
ROW = ("What is measured", "First", "Second", "Effect (interval)", "Word")
