"""The records of probes as sections of the page."""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from normscope import plots
from normscope.plots import Figure
from normscope.probes import AbstractProbe
from normscope.report import Section

if TYPE_CHECKING:
    import polars

_PERCENTILES = ("p15", "p50", "p85")
_GRID_POINT = re.compile(r"@s=|@.*=\d")  # one point of a probe's grid: drawn as part of a range, not by itself
_SPREAD_FOR_LOG = 30.0


def sections_of(frame: "polars.DataFrame", probes: Sequence[AbstractProbe]) -> list[Section]:
    """Make one section a probe, in the order in which the scope holds them.

    Args:
        frame: A scope's records.
        probes: Its probes; one without records is passed over.
    """
    import polars as pl

    frame = frame.with_columns(pl.col("cell").alias("arm"), pl.lit(0).alias("seed"))
    found = []
    for kind in dict.fromkeys(type(probe) for probe in probes):
        records = frame.filter(pl.col("probe") == kind.CODE)
        if records.is_empty():
            continue
        page = kind.page()
        found.append(
            Section(
                slug=kind.CODE.replace("_", "-"),
                title=kind.title(),
                claim=page["Measures"],
                page={heading: text for heading, text in page.items() if heading != "Measures"},
                verdicts=(),
                figures=tuple(_figures(records)),
                kind="probe",
            )
        )
    return found


def _figures(records: "polars.DataFrame") -> Iterator[Figure]:
    import polars as pl

    names = records["name"].unique(maintain_order=True).to_list()
    probe = records["probe"][0]
    rest = [name for name in names if not _GRID_POINT.search(name)]
    if set(_PERCENTILES) <= set(names):
        yield plots.percentiles(records, title="15th, 50th and 85th percentile in the last layer", slug=f"{probe}-last")
        rest = [name for name in rest if name not in _PERCENTILES]
    ranges = {name.partition("@")[0][: -len("_min")] for name in rest if name.partition("@")[0].endswith("_min")}
    for stem in sorted(ranges):
        low, high = f"{stem}_min", f"{stem}_max"
        yield plots.landscape_band(
            records, title=f"Range of the {stem} along the line", low=low, high=high, slug=f"{probe}-{stem}"
        )
        rest = [name for name in rest if name.partition("@")[0] not in (low, high)]
    several_steps = records["step"].n_unique() > 1
    for name in rest:
        rows = records.filter(pl.col("name") == name)
        slug, title = f"{probe}-{name}", plots.readable(name)
        if rows["site"].n_unique() == 1:
            yield plots.curves(rows, y=name, title=title, slug=slug, log=_wide(rows))
            continue
        if several_steps:
            yield plots.heatmap(rows, y=name, title=f"{title}, by layer and step", slug=f"{slug}-map", log=_wide(rows))
        yield plots.by_depth(rows, y=name, title=f"{title}, by layer", slug=slug, log=_wide(rows))


def _wide(rows: "polars.DataFrame") -> bool:
    """Return whether the values are positive and span more than an axis of equal steps can show."""
    values = rows["value"].drop_nans()
    values = values.filter(values.is_finite())
    if values.is_empty():
        return False
    low, high = float(values.min()), float(values.max())  # type: ignore[arg-type]
    return low > 0 and high / low > _SPREAD_FOR_LOG
