"""Landscape bands: how far loss (or gradient) moves along the gradient, per arm over training.

Source: Santurkar et al. 2018, Fig. 4 (a, b).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from normscope.plots import _draw
from normscope.plots._figure import Figure, finished
from normscope.plots._frames import Drawn, chosen, joined, thinned
from normscope.plots._lines import Lines, in_words, tips
from normscope.plots._names import readable

if TYPE_CHECKING:
    import polars as pl


def landscape_band(
    frame: "pl.DataFrame",
    *,
    title: str,
    low: str | None = "loss_min",
    high: str = "loss_max",
    matchings: Sequence[str] | None = None,
    slug: str | None = None,
    log: bool = False,
    y_title: str | None = None,
    arms: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    caption: str = "",
    alt: str = "",
) -> Figure:
    """Draw the range between two recorded quantities at every step, one band an arm, one panel a matching.

    Args:
        frame: Records of the landscape probe; names may carry a matching (``loss_min@same-step``).
        title: What the figure shows, in a line.
        low: Name of the lower end; None for zero (a difference from the start of the line, which begins there).
        high: Name of the upper end.
        matchings: Suffixes to show, one panel each; None for all that the frame holds.
        slug: Name of the figure; made from ``high`` if None.
        log: Logarithmic axis; with ``low=None`` only the upper line is drawn.
        y_title: What is drawn upward, with its unit.
        arms: All arms of the study in order.
        labels: Words for arms and matchings.
        caption: Sentences before the sentence on the band.
        alt: Description for those who do not see it.

    Returns:
        The figure. Ends are medians over seeds: one exploding seed does not hide the others.
    """
    import altair
    import polars as pl

    slug = slug or f"landscape-{high}".replace("_", "-")
    held = frame["name"].unique().to_list() if "name" in frame.columns else []
    found = [n.partition("@")[2] for n in sorted(held) if n.partition("@")[0] == high]
    shown = [m for m in (found if matchings is None else matchings) if m in found]
    names = [f"{n}@{m}" if m else n for n in (low, high) if n for m in shown]
    kept, notes = chosen(frame, names, log=log)
    if not kept.height:
        missing = "" if names else f"There are no records of {high}."
        return _draw.nothing(slug, title, joined(caption, missing, *(notes if names else [])), alt)
    split = pl.col("name").str.split_exact("@", 1).struct
    kept = kept.with_columns(split.field("field_0").alias("end"), split.field("field_1").fill_null("").alias("panel"))
    seeds = kept.group_by("arm", "panel", "step", "seed", "end").agg(pl.col("value").mean())
    wide = seeds.group_by("arm", "panel", "step", "end").agg(
        pl.col("value").median(), pl.col("seed").n_unique().alias("n")
    )
    upper = wide.filter(pl.col("end") == high).rename({"value": "high"})
    keys = ["arm", "panel", "step"]
    if low is None:
        table = upper.with_columns((pl.col("high") if log else pl.lit(0.0)).alias("low"))
    else:
        lower = wide.filter(pl.col("end") == low).select(*keys, pl.col("value").alias("low"))
        table = upper.join(lower, on=keys)
    table = table.select(pl.col("arm", "panel", "low", "high", "n"), pl.col("step").cast(pl.Float64).alias("x"))
    drawn = thinned(Drawn(table.sort("arm", "panel", "x"), [], max(table["n"].to_list(), default=0)))
    words = {m: f"Matched by {m.replace('-', ' ')}" for m in shown if m} | dict(labels or {})
    shown_table, styles = in_words(drawn, ("arm", "panel"), words, arms)
    across = _draw.along(altair, "x", "Optimizer step")
    lines = Lines(across, styles, log, _draw.log_ticks(drawn.frame) if log else (), legend=len(styles) > 1)
    lines.band(opacity=0.28, clip=True)
    lines.line("high", width=1.8, clip=True)
    if low is not None:
        lines.line("low", width=1.0, clip=True)
    named = [altair.Tooltip("arm:N", title="arm"), altair.Tooltip("x:Q", title="step", format="~g")]
    lines.hover(tips(named, [("low", "from"), ("high", "to")]), "high")
    panelled = len(shown) > 1
    data = _draw.rows(shown_table, {c: c for c in ("arm", "panel", "x", "low", "high")})
    chart = lines.chart(data, [words.get(m, m) for m in shown] if panelled else [], independent=True)
    subtitle = y_title or ("Loss along the gradient (nats)" if high == "loss_max" else readable(high))
    if log:
        subtitle += ", logarithmic axis"
    layout = "facet" if panelled else "single"
    spec = finished(
        chart, layout=layout, subtitle=subtitle, panels=len(shown), legend=tuple(styles) if len(styles) > 1 else ()
    )
    over = f"medians over {drawn.seeds} seeds" if drawn.seeds > 1 else "one seed"
    band = f"Band: from the lowest to the highest value met along the gradient; {over}."
    told = joined(caption, band, *notes, *drawn.notes)
    return Figure(slug, title, told, alt or f"{title}. Bands over steps for {', '.join(styles)}.", spec)
