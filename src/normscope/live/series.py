"""Series of a run's records, each thinned to a bounded number of points, and what was added to them since when."""

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from normscope.plots import readable

if TYPE_CHECKING:
    import polars as pl

#: Points of all series together that are kept, about.
MOST_POINTS = 200_000
#: Series that are kept; records of further series are counted and dropped.
MOST_SERIES = 4000

_GRID_POINT = r"@s=|@.*=\d"  # one point of a probe's grid: there may be hundreds, and a report draws them as a range
_FEWEST, _MOST = 50, 400  # points of one series


@dataclass(slots=True)
class Series:
    """One quantity of one probe at one site in one cell.

    Attributes:
        number: Its number, in order of appearance.
        key: Cell, probe, name and site.
        unit: Unit of its values.
        made: Version of the collection at which it appeared.
        steps: Steps, in order of arrival.
        values: Values.
        versions: Version of the collection at which each point came.
    """

    number: int
    key: tuple[str, str, str, str]
    unit: str
    made: int
    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)

    def thin(self, most: int) -> None:
        """Halve the points while there are more than twice as many as ``most``; extremes and the last point stay."""
        while len(self.steps) > 2 * most:
            kept = kept_of(self.values)
            self.steps = [self.steps[index] for index in kept]
            self.values = [self.values[index] for index in kept]
            self.versions = [self.versions[index] for index in kept]


def kept_of(values: list[float]) -> list[int]:
    """Return the places of half of the values: of each four the smallest and the largest, and the last value.

    A value that is not finite counts as the largest, so that it is not thinned away.
    """
    kept = []
    for first in range(0, len(values), 4):
        group = range(first, min(first + 4, len(values)))
        heights = [values[index] if math.isfinite(values[index]) else math.inf for index in group]
        kept += sorted({first + heights.index(min(heights)), first + heights.index(max(heights))})
    if kept and kept[-1] != len(values) - 1:
        kept.append(len(values) - 1)
    return kept


class SeriesCollection:
    """All series of a run.

    Attributes:
        version: Grows with each addition; what a viewer has seen is told by it.
        dropped: Names of series beyond `MOST_SERIES`, as a number.
    """

    def __init__(self) -> None:
        self.version = 0
        self._series: dict[tuple[str, str, str, str], Series] = {}
        self._dropped: set[tuple[str, str, str, str]] = set()

    @property
    def dropped(self) -> int:
        """How many series are left out."""
        return len(self._dropped)

    def add(self, frame: "pl.DataFrame") -> None:
        """Add the rows of a part."""
        import polars as pl

        self.version += 1
        keys = ("cell", "probe", "name", "site")
        frame = frame.filter(~pl.col("name").str.contains(_GRID_POINT))
        groups = frame.group_by(keys, maintain_order=True).agg(pl.col("unit").first(), "step", "value")
        for cell, probe, name, site, unit, steps, values in groups.iter_rows():
            series = self._of((cell, probe, name, site), unit)
            if series is not None:
                series.steps += steps
                series.values += values
                series.versions += [self.version] * len(steps)
        for series in self._series.values():
            series.thin(self.most)

    def _of(self, key: tuple[str, str, str, str], unit: str) -> Series | None:
        if key not in self._series:
            if len(self._series) >= MOST_SERIES:
                if len(self._dropped) < MOST_SERIES:
                    self._dropped.add(key)
                return None
            self._series[key] = Series(len(self._series), key, unit, self.version)
        return self._series[key]

    @property
    def most(self) -> int:
        """Points of one series from whose double on it is thinned."""
        return max(_FEWEST, min(_MOST, MOST_POINTS // max(1, len(self._series))))

    def since(self, version: int) -> dict[str, list[Any]]:
        """Return what came after a version, as JSON values.

        Returns:
            ``series``: of each new series its number, cell, probe, name, site, unit and the name in words.
            ``points``: of each series with new points its number, their steps and their values; a value that is not
            finite is ``"nan"``, ``"inf"`` or ``"-inf"``.
        """
        made, points = [], []
        for series in self._series.values():
            if series.made > version:
                made.append([series.number, *series.key, series.unit, readable(series.key[2])])
            first = bisect_right(series.versions, version)
            if first < len(series.steps):
                points.append([series.number, series.steps[first:], list(_short(series.values[first:]))])
        return {"series": made, "points": points}


def _short(values: Iterable[float]) -> Iterable[float | str]:
    """Return the values with the digits that a picture shows."""
    for value in values:
        yield float(f"{value:.6g}") if math.isfinite(value) else str(value)
