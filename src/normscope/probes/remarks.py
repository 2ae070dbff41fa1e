"""What stands out in the records of one probe, in sentences: readings by site, and helpers for the sentences."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from statistics import median

from normscope.records.numbers import counted as counted, number

Series = Sequence[tuple[int, float]]  # (step, value), by step
Theory = dict[str, tuple[str, float | dict[str, float]]]  # words, and a value or a value for each layer, by quantity
_CHANGED = 1.5  # from this factor on a sentence tells how a value was when training began


class Urgency(IntEnum):
    """How a sentence is to be taken; the more urgent sentences come first."""

    NOTABLE = 1
    COSTLY = 2
    BROKEN = 3


@dataclass(frozen=True, slots=True)
class Remark:
    """A sentence on something that stands out.

    Attributes:
        says: The sentence; names of modules stand between backquotes.
        urgency: How it is to be taken.
        excess: How far beyond its threshold the value lies, from 0 to 1: orders remarks of one urgency.
        sites: The modules that it is about, the extreme one first.
        name: The quantity that it is about.
    """

    says: str
    urgency: Urgency
    excess: float = 0.0
    sites: tuple[str, ...] = ()
    name: str = ""

    @property
    def rank(self) -> float:
        """Return a number that is higher the earlier the remark is to be read."""
        return self.urgency + min(max(self.excess, 0.0), 0.99)


@dataclass(frozen=True, slots=True)
class Readings:
    """The records of one probe in one cell.

    Attributes:
        values: Series by name and site; sites in the order of the layers.
        kinds: Class name of each module of the model by its qualified name; empty where that is not known.
    """

    values: Mapping[str, Mapping[str, Series]]
    kinds: Mapping[str, str]

    def first(self, name: str) -> dict[str, float]:
        """Return the first finite value of each site."""
        found = {site: _finite(series) for site, series in self.values.get(name, {}).items()}
        return {site: series[0][1] for site, series in found.items() if series}

    def late(self, name: str) -> dict[str, float]:
        """Return the median of the last quarter of each site's finite values: how things are now, without the noise."""
        found = {site: [value for _, value in _finite(series)] for site, series in self.values.get(name, {}).items()}
        return {site: median(values[-max(1, len(values) // 4) :]) for site, values in found.items() if values}

    def largest(self, name: str) -> dict[str, float]:
        """Return the largest of each site's finite values."""
        found = {site: [value for _, value in _finite(series)] for site, series in self.values.get(name, {}).items()}
        return {site: max(values) for site, values in found.items() if values}

    def not_finite(self, name: str) -> dict[str, int]:
        """Return the first step at which a site's value was not finite, for sites where one was not."""
        found = {
            site: [step for step, value in series if not math.isfinite(value)]
            for site, series in self.values.get(name, {}).items()
        }
        return {site: steps[0] for site, steps in found.items() if steps}

    def share(self, name: str, holds: Callable[[float], bool]) -> float:
        """Return the share of the whole model's finite values for which something holds; 0 if there are none."""
        values = [value for _, value in _finite(self.values.get(name, {}).get("", ()))]
        return sum(map(holds, values)) / len(values) if values else 0.0

    def named(self, base: str) -> list[str]:
        """Return the recorded names of a quantity: itself, and with what stands behind an ``@``."""
        return [name for name in self.values if name.partition("@")[0] == base]

    def telling(self, base: str) -> str:
        """Return the recorded name of a quantity, or where it was not recorded the first name without a grid point."""
        plain = [name for name in self.values if "=" not in name]
        return next(iter(self.named(base)), next(iter(plain or self.values)))

    @property
    def first_step(self) -> int:
        """The first step of any reading."""
        return min((series[0][0] for sites in self.values.values() for series in sites.values() if series), default=0)

    @property
    def last_step(self) -> int:
        """The last step of any reading."""
        return max((series[-1][0] for sites in self.values.values() for series in sites.values() if series), default=0)

    def has(self, kind: str) -> bool:
        """Tell whether the model has a module whose class has ``kind`` in its name."""
        return any(kind in each for each in self.kinds.values())


@dataclass(frozen=True, slots=True)
class Beyond:
    """The sites whose value, late or largest, lies beyond a bound.

    Attributes:
        name: The quantity.
        values: That value by site, the extreme one first; never empty.
        first: The extreme site's value at its first reading.
        first_step: The step of the first reading.
        total: Number of sites read.
        excess: How far the extreme value lies beyond the bound, from 0 (at it) to 1 (ten times or more).
    """

    name: str
    values: Mapping[str, float]
    first: float
    first_step: int
    total: int
    excess: float

    @property
    def site(self) -> str:
        """The extreme site."""
        return next(iter(self.values))

    @property
    def value(self) -> float:
        """The extreme value."""
        return self.values[self.site]

    def remark(self, one: str, many: str, write: Callable[[float], str], urgency: Urgency, noun: str) -> Remark:
        """Make the sentence.

        Args:
            one: Sentence about one site, with ``{site}``, ``{value}`` and ``{since}`` (how it was when training began;
                empty if nearly as it is now).
            many: Sentence about several, also with ``{where}``: ``12 of 24 layers``.
            write: Writes a value.
            urgency: How it is to be taken.
            noun: What the sites are, in the singular.
        """
        form = one if len(self.values) == 1 else many
        says = form.format(
            site=called(self.site),
            value=write(self.value),
            since=_since(self.first, self.value, self.first_step, write),
            where=share_of(len(self.values), self.total, noun),
        )
        return Remark(sentence(says), urgency, self.excess, tuple(self.values), self.name)


def beyond(
    readings: Readings,
    name: str,
    *,
    above: float | None = None,
    below: float | None = None,
    size: bool = False,
    largest: bool = False,
) -> Beyond | None:
    """Return the sites whose late or largest value lies beyond a bound; None where there is none.

    Args:
        readings: The probe's readings.
        name: The quantity.
        above: Values above it are beyond.
        below: Values below it are beyond.
        size: Whether to judge the size of the value, whatever its sign.
        largest: Whether to judge the largest value instead of the late one.
    """
    late = readings.largest(name) if largest else readings.late(name)
    judged = {site: abs(value) if size else value for site, value in late.items()}
    if above is not None:
        out = sorted((site for site, value in judged.items() if value > above), key=lambda s: -judged[s])
        excess = decades(judged[out[0]], above) if out and above > 0 else 0.0
    elif below is not None:
        out = sorted((site for site, value in judged.items() if value < below), key=lambda s: judged[s])
        excess = decades(below, judged[out[0]]) if out and judged[out[0]] > 0 and below > 0 else float(bool(out))
    else:
        out, excess = [], 0.0
    if not out:
        return None
    first = readings.first(name)[out[0]]
    steps = [step for step, value in readings.values[name][out[0]] if math.isfinite(value)]
    now = steps[0] if len(steps) > 1 else -1
    return Beyond(name, {site: late[site] for site in out}, first, now, len(late), min(1.0, max(0.0, excess)))


def decades(over: float, under: float) -> float:
    """Return the decimal logarithm of a ratio of positive numbers, without overflow; 0 where there is none."""
    if not (0 < over < math.inf and 0 < under < math.inf):
        return 0.0
    return math.log10(over) - math.log10(under)


def called(site: str) -> str:
    """Return a module's name between backquotes: ``the whole model`` for the empty one."""
    return f"`{site.replace('`', chr(39))}`" if site else "the whole model"


def percent(share: float) -> str:
    """Write a share: ``41 %``, ``0.3 %``, ``less than 0.1 %``; never ``100 %`` for less than all."""
    if not math.isfinite(100 * share):
        return "an unknown share"
    hundredths = 100 * share
    if 0 < hundredths < 0.1:
        return "less than 0.1 %"
    if 99.5 <= hundredths < 100:
        return "more than 99 %"
    return f"{hundredths:.0f} %" if hundredths >= 9.95 else f"{number(round(hundredths, 1))} %"


def times(factor: float) -> str:
    """Write a factor: ``1.47 times``, ``12 times``, ``76,600 times``."""
    if not math.isfinite(factor):
        return "beyond all bounds"
    return f"{_written(factor, 3)} times"


def amount(value: float) -> str:
    """Write a value with two significant digits: ``0.35``, ``12``, ``3400``."""
    return _written(value, 2)


def share_of(count: int, total: int, noun: str, plural: str = "") -> str:
    """Write ``1 of 4 layers``, ``all 4 layers``, ``both layers``, ``the layer``."""
    nouns = noun if total == 1 else plural or f"{noun}s"
    if count == total:
        return {1: f"the {nouns}", 2: f"both {nouns}"}.get(total, f"all {total} {nouns}")
    return f"{count} of {total} {nouns}"


def sentence(text: str) -> str:
    """Begin with a capital, unless a name stands there, and end with a full stop."""
    text = " ".join(text.split())
    text = text if text.endswith((".", "!", "?")) else f"{text}."
    return text[:1].upper() + text[1:]


def listed(words: Iterable[str]) -> str:
    """Join words: ``a``, ``a and b``, ``a, b and c``."""
    *head, last = [*words] or [""]
    return f"{', '.join(head)} and {last}" if head else last


def _written(value: float, digits: int) -> str:
    """Write a value with some significant digits: ``0.35``, ``12``, ``76,600``."""
    rounded = float(f"{value:.{digits}g}") if math.isfinite(value) else value
    return f"{rounded:,.0f}" if 1e4 <= abs(rounded) < 1e6 else number(rounded)


def _since(first: float, now: float, step: int, write: Callable[[float], str]) -> str:
    """Return how a value was when training began, unless it was nearly the same, or was read once."""
    near = first * now > 0 and 1 / _CHANGED < first / now < _CHANGED
    return "" if step < 0 or near or first == now else f", from {write(first)} at step {step:,}"


def _finite(series: Series) -> list[tuple[int, float]]:
    return [(step, value) for step, value in series if math.isfinite(value)]
