"""How arms, conditions and contrasts are put into words where a study gives none of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from normscope.plots import effect_words
from normscope.records import Outcome
from normscope.studies.contrast import Contrast, Reading, Sample, Side
from normscope.studies.quantity import Best

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
_OWN_BEST = {"lr": "own best learning rates"}
_JOINED = {"log-ratio": "over", "difference": "minus", "value": "against"}


@dataclass(frozen=True)
class Wording:
    """Words for the arms and conditions of a study.

    Attributes:
        arms: Words for the arms, by their name in the records.
        conditions: Words for the values of points, ``{}`` for the value, by the name of the value; empty leaves it out.
    """

    arms: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, str] = field(default_factory=dict)

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
            said = sentence(", ".join(word for word in (contrast.quantity.words, compared, at) if word))
        if contrast.exact_within is not None:
            return f"{said}: powers of ten below {contrast.exact_within:g}"
        return said

    def reason(self, reading: Reading) -> str:
        """Say the numbers of a reading in a sentence, the contrast's own words first."""
        contrast = reading.contrast
        if contrast.reason:
            said = contrast.reason if isinstance(contrast.reason, str) else contrast.reason(reading)
        elif contrast.exact_within is not None:
            worst, allowed = float(reading.errors.max()), contrast.exact_within
            said = f"The largest error of {len(reading.errors)} seeds is {worst:.1e}; {allowed:g} is allowed."
        else:
            said = f"{sentence(contrast.quantity.words)}: {self.numbers(reading)}."
        if not len(reading.kept) and contrast.exact_within is None:
            return reading.missing
        return f"{said} {reading.missing}".strip() if contrast.exact_within is None else said

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
            return contrast.quantity.typical(sample.values) + (f" {label}" if label != f"{sample.values:g}" else "")
        assert sample.values is not None
        notes = [
            self.condition(key, sample.where[key]) for key, value in contrast.at.items() if isinstance(value, Best)
        ]
        if sample.never:
            notes.append(f"never reached in {sample.never} of {len(sample.values)} runs")
        said = f"{label} {contrast.quantity.typical(sample.values)}".strip()
        return f"{said} ({', '.join(notes)})" if notes else said

    def row(self, contrast: Contrast, reading: Reading, outcome: Outcome) -> tuple[str, ...]:
        """Return the row of a table of contrasts; ``ROW`` has the heads of the columns."""
        first, second = (
            contrast.quantity.typical(sample.values) if sample.values is not None else ""
            for sample in (reading.first, reading.second)
        )
        return self.endpoint(contrast), first, second, effect_words(reading.effect), outcome.value


#: Heads of the columns of a table of contrasts.
ROW = ("What is measured", "First", "Second", "Effect (interval)", "Outcome")


def sentence(words: str) -> str:
    """Return words with a capital at the beginning, the rest as it is."""
    return words[:1].upper() + words[1:]
