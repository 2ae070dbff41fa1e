"""Measured against theory: points with intervals beside the lines that theory draws."""

from typing import TYPE_CHECKING, Any

from normscope.plots import _draw
from normscope.plots._figure import Figure, finished
from normscope.plots._frames import chosen, joined, summarised
from normscope.plots._lines import tips
from normscope.plots._theme import arm_styles

if TYPE_CHECKING:
    import polars as pl


def versus_theory(
    measured: "pl.DataFrame",
    theory: "pl.DataFrame",
    *,
    x: str,
    title: str,
    y_title: str,
    x_title: str | None = None,
    by: str | None = None,
    slug: str | None = None,
    log: bool = False,
    log_x: bool = False,
    caption: str = "",
    alt: str = "",
) -> Figure:
    """Draw measured points with their intervals over theoretical lines.

    Args:
        measured: Either columns ``x``, ``point``, ``low``, ``high`` (made by ``normscope.stats``), or ``x``, ``value``
            and ``seed``: then mean and 95 % t interval are drawn. Infinite ends are drawn as no bar.
        theory: Columns ``x`` and ``value`` (and ``by``): the lines.
        x: Column along the horizontal axis.
        title: What the figure shows, in a line.
        y_title: What is drawn upward, with its unit.
        x_title: Title of the horizontal axis; from ``x`` if None.
        by: Column of both frames that tells series apart.
        slug: Name of the figure.
        log: Logarithmic vertical axis.
        log_x: Logarithmic horizontal axis.
        caption: Sentences before the sentence on points and lines.
        alt: Description for those who do not see it.
    """
    import altair
    import polars as pl

    slug = slug or f"theory-{x}".replace("_", "-")
    points, notes = _points(measured, x, by)
    lines = _series(theory, by).select(
        "arm", pl.col(x).cast(pl.Float64).alias("x"), pl.col("value").cast(pl.Float64).alias("mid")
    )
    for name, axis in (("x", log_x), ("mid", log)):
        if axis:
            points, lines = points.filter(pl.col(name) > 0), lines.filter(pl.col(name) > 0)
    if log:  # an interval that reaches zero ends at the lowest point shown: the logarithm has no zero
        floor = points["mid"].min()
        points = points.with_columns(
            pl.when(pl.col("low") > 0)
            .then(pl.col("low"))
            .otherwise(pl.min_horizontal(pl.lit(floor), "mid"))
            .alias("low")
        )
    if not points.height and not lines.height:
        return _draw.nothing(slug, title, joined(caption, *notes), alt)
    present = [*points["arm"].unique(maintain_order=True), *lines["arm"].unique(maintain_order=True)]
    styles = arm_styles(present, list(dict.fromkeys(present)))
    several = len(styles) > 1
    colour = _draw.colour(altair, styles, show=several)
    line_data = _draw.rows(lines.sort("arm", "x"), {"arm": "arm", "x": "x", "mid": "mid"})
    point_data = _draw.rows(points.sort("arm", "x"), {c: c for c in ("arm", "x", "mid", "low", "high")})
    few = 0 < points["x"].n_unique() <= 8
    labelled = points["x"].unique().sort().to_list() if few else _draw.log_ticks(points, ["x"]) if log_x else None
    across = _draw.along(altair, "x", x_title or x, whole=False, log=log_x, ticks=labelled)
    ticks = _draw.log_ticks(pl.concat([points.select("mid"), lines.select("mid")])) if log else []
    shown: dict[str, Any] = {"color": colour}
    if several:
        shown["opacity"] = _draw.unless_picked(altair, 1, 0.12)
    numbers = [("x", x_title or x), ("mid", "measured"), ("low", "low"), ("high", "high")]
    tooltip = tips([altair.Tooltip("arm:N", title="series")] if several else [], numbers)
    line = altair.Chart(line_data).mark_line(strokeDash=[5, 4], strokeWidth=1.8)
    line = line.encode(x=across, y=_draw.upward(altair, "mid", log=log, ticks=ticks), **shown)
    bars = altair.Chart().mark_rule(strokeWidth=2)
    bars = bars.encode(x=across, y=_draw.upward(altair, "low", log=log, ticks=ticks), y2="high:Q", **shown)
    dots = altair.Chart().mark_point(filled=True, size=70)
    dots = dots.encode(x=across, y=_draw.upward(altair, "mid", log=log, ticks=ticks), tooltip=tooltip, **shown)
    chart = altair.layer(line, altair.layer(bars, dots, data=point_data)).properties(height=_draw.HEIGHT)
    if several:
        chart = chart.add_params(_draw.pick(altair))
    subtitle = y_title + (", logarithmic axis" if log else "")
    spec = finished(chart, layout="single", subtitle=subtitle, legend=tuple(styles) if several else ())
    told = joined(caption, "Points: measured, with 95 % intervals; dashed: theory.", *notes)
    return Figure(
        slug, title, told, alt or f"{title}. {y_title}, measured and predicted, against {x_title or x}.", spec
    )


def _series(frame: "pl.DataFrame", by: str | None) -> "pl.DataFrame":
    """Name the series ``arm``, whatever column tells them apart."""
    import polars as pl

    return frame.with_columns((pl.col(by).cast(pl.String) if by else pl.lit("measured")).alias("arm"))


def _points(measured: "pl.DataFrame", x: str, by: str | None) -> tuple["pl.DataFrame", list[str]]:
    """Return ``arm``, ``x``, ``mid``, ``low``, ``high`` from intervals as given, or made here from values per seed."""
    import polars as pl

    frame = _series(measured, by)
    if "point" not in frame.columns:
        kept, notes = chosen(frame.with_columns(pl.lit("value").alias("name")), ["value"])
        drawn = summarised(kept, x=x, panel=None, band="ci")
        return drawn.frame.select("arm", "x", "mid", "low", "high"), notes
    frame = frame.select(
        "arm",
        *(
            pl.col(c).cast(pl.Float64).alias(t)
            for c, t in ((x, "x"), ("point", "mid"), ("low", "low"), ("high", "high"))
        ),
    )
    fine = frame.filter(pl.col("mid").is_finite())
    gone = frame.height - fine.height
    notes = [f"Left out: {gone} {'point' if gone == 1 else 'points'} not finite."] if gone else []
    ends = [pl.when(pl.col(c).is_finite()).then(pl.col(c)).otherwise(pl.col("mid")).alias(c) for c in ("low", "high")]
    return fine.with_columns(ends), notes
