"""The records of probes as pictures: one that says most, and the rest."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from normscope import plots
from normscope.plots import Figure
from normscope.probes import AbstractProbe, Readings
from normscope.report import Section
from normscope.seen._facts import Seen
from normscope.seen._sentences import Said, all_readings

if TYPE_CHECKING:
    import polars

_PERCENTILES = ("p15", "p50", "p85")
_GRID_POINT = re.compile(r"@s=|@.*=\d")  # one point of a probe's grid: drawn as part of a range, not by itself
_SPREAD_FOR_LOG = 30.0
_TOGETHER = 6  # panels a figure
_FEWEST = 3  # layers and steps from which on a map of both says more than lines
_LOSSES = (("loss", "loss"), ("descent", "loss"), ("landscape", "loss"), ("statistics_gap", "train_loss"))
_ARGUMENTS = re.compile(r"\n\s*(?:Args|Raises|Returns|Attributes|Example|Yields):\n.*", re.DOTALL)


def loss_of(seen: Seen) -> Figure | None:
    """Return the curve of the loss, from the probe that read it most often; None if no probe recorded one."""
    import polars as pl

    found = [
        drawable(seen.frame.filter((pl.col("probe") == probe) & (pl.col("name") == name))) for probe, name in _LOSSES
    ]
    rows = max(found, key=lambda rows: rows["step"].n_unique())
    if rows.is_empty():
        return None
    named = rows.with_columns(pl.lit("loss").alias("name"))
    title = "Loss of the step's batch"
    return _of_one_run(plots.curves(named, y="loss", title=title, slug="loss", y_title="Loss", log=wide(rows)))


def drawable(records: "polars.DataFrame") -> "polars.DataFrame":
    """Return records as charts take them: the cell is the arm."""
    import polars as pl

    words = pl.col("cell", "probe", "site", "name").cast(pl.String)
    return records.with_columns(words).with_columns(pl.col("cell").alias("arm"), pl.lit(0).alias("seed"))


def sections_of(seen: Seen, said: Sequence[Said]) -> list[tuple[Section, Figure]]:
    """Return for each probe its section, without the picture that says most, and that picture.

    Args:
        seen: Records and facts.
        said: What stands out: the picture of a probe shows what its most urgent sentence is about.
    """
    import polars as pl

    about = {each.probe: each.remark.name for each in reversed(said)}
    by_probe: dict[type[AbstractProbe], Readings] = {}
    for _, probe, readings in all_readings(seen):
        by_probe.setdefault(probe, readings)
    found = []
    for probe, readings in by_probe.items():
        records = drawable(seen.frame.filter(pl.col("probe") == probe.CODE))
        if set(records["name"]) == {"loss"}:
            continue  # the curve at the top
        pictures = _Pictures(probe, readings, records, seen.order, about.get(probe.CODE, ""))
        page = {heading: _ARGUMENTS.sub("", text) for heading, text in probe.page().items()}
        section = Section(
            slug=probe.CODE.replace("_", "-"),
            title=probe.title().rstrip("."),
            claim=page.pop("Measures"),
            page=page,
            verdicts=(),
            figures=tuple(map(_of_one_run, pictures.rest())),
            kind="probe",
        )
        found.append((section, _of_one_run(pictures.first())))
    return found


class _Pictures:
    """The pictures of one probe's records; ``telling`` is the quantity of the first."""

    def __init__(
        self,
        probe: type[AbstractProbe],
        readings: Readings,
        records: "polars.DataFrame",
        order: Sequence[str],
        telling: str = "",
    ) -> None:
        self.probe, self.records, self.order = probe, records, order
        self.theory = probe.theory(readings)
        self.names: list[str] = records["name"].unique(maintain_order=True).to_list()
        self.last = max(records["site"].unique().to_list(), key=plots.natural_key)  # as the picture of percentiles does
        self.shown = telling or readings.telling(probe.SHOWS)

    def first(self) -> Figure:
        """Draw the picture that says most."""
        rows = self._of(self.shown)
        slug, title = f"{self.probe.CODE}-first", self.probe.CODE.replace("_", " ").capitalize()
        if _of_model(rows):
            return self._curves([self.shown], title, slug)
        line = self._line(self.shown)
        with_line = wide(rows, *([line[1]] if line is not None and isinstance(line[1], float) else []))
        return plots.by_layer(rows, y=self.shown, title=title, slug=slug, order=self.order, log=with_line, theory=line)

    def rest(self) -> Iterator[Figure]:
        """Draw everything else, in few figures of several panels."""
        code, rows = self.probe.CODE, self._of(self.shown)
        several = rows["step"].n_unique() >= _FEWEST and rows["site"].n_unique() >= _FEWEST
        if several and rows["arm"].n_unique() == 1:
            words = f"{plots.readable(self.shown)}, by layer and step"
            yield plots.heatmap(rows, y=self.shown, title=words, slug=f"{code}-map", log=wide(rows), order=self.order)
        left = [name for name in self.names if name != self.shown and not _GRID_POINT.search(name)]
        if set(_PERCENTILES) <= set(left):
            words = "15th, 50th and 85th percentile in the last layer"
            one = self.records["arm"].n_unique() == 1
            labels = dict.fromkeys(self.records["arm"].unique().to_list(), self.last) if one else {}
            yield plots.percentiles(self.records, title=words, slug=f"{code}-last", labels=labels)
            left = [name for name in left if name not in _PERCENTILES]
        for stem in sorted(
            {base[: -len("_min")] for name in left if (base := name.partition("@")[0]).endswith("_min")}
        ):
            low, high = f"{stem}_min", f"{stem}_max"
            words = f"Range of the {stem} along the line"
            yield plots.landscape_band(self.records, title=words, low=low, high=high, slug=f"{code}-{stem}")
            left = [name for name in left if name.partition("@")[0] not in (low, high)]
        whole = [name for name in left if _of_model(self._of(name))]
        layers = [name for name in left if name not in whole]
        same: dict[frozenset[str], list[str]] = {}  # panels of one figure share their layers
        for name in layers:
            same.setdefault(frozenset(self._of(name)["site"].unique().to_list()), []).append(name)
        for number, part in enumerate(part for names in same.values() for part in _parts(names)):
            records = self.records.filter(_column("name").is_in(part))
            words = "Other quantities by layer" if len(part) > 1 else plots.readable(part[0])
            slug = f"{code}-layers-{number}"
            yield plots.by_layer(records, y=part, title=words, slug=slug, order=self.order, log=_all_wide(records))
        for number, part in enumerate(_parts(whole)):
            words = "Quantities of the whole model" if len(part) > 1 else plots.readable(part[0])
            yield self._curves(part, words, f"{code}-model-{number}")

    def _of(self, name: str) -> "polars.DataFrame":
        return self.records.filter(_column("name") == name)

    def _curves(self, names: Sequence[str], title: str, slug: str) -> Figure:
        rows = self.records.filter(_column("name").is_in(list(names)) & (_column("site") == ""))
        line = self._line(names[0]) if len(names) == 1 else None
        reference = {line[0]: line[1]} if line is not None and isinstance(line[1], float) else None
        y = names[0] if len(names) == 1 else list(names)
        return plots.curves(rows, y=y, title=title, slug=slug, log=_all_wide(rows), reference=reference)

    def _line(self, name: str) -> Any:
        return self.theory.get(name.partition("@")[0])


def _of_one_run(figure: Figure) -> Figure:
    """Take what is said about seeds from a caption: a scope has none."""
    return replace(figure, caption=re.sub(r"One seed(?:, hence no band)?\.\s*|; one seed", "", figure.caption).strip())


def _column(name: str) -> Any:
    import polars

    return polars.col(name)


def _of_model(rows: "polars.DataFrame") -> bool:
    return rows["site"].unique().to_list() == [""]


def _parts(names: Sequence[str]) -> list[list[str]]:
    """Share names out evenly over as few figures as hold them."""
    if not names:
        return []
    size = math.ceil(len(names) / math.ceil(len(names) / _TOGETHER))
    return [list(names[start : start + size]) for start in range(0, len(names), size)]


def _all_wide(rows: "polars.DataFrame") -> bool:
    """Return whether each quantity by itself wants a logarithmic axis."""
    return all(wide(rows.filter(_column("name") == name)) for name in rows["name"].unique().to_list())


def wide(rows: "polars.DataFrame", *beside: float) -> bool:
    """Return whether the values are positive and span more than an axis of equal steps can show."""
    values = rows["value"].drop_nans()
    values = values.filter(values.is_finite())
    if values.is_empty():
        return False
    shown = [*values.to_list(), *beside]
    low, high = min(shown), max(shown)
    return low > 0 and high / low > _SPREAD_FOR_LOG
