"""Percentiles: where a layer's outputs lie over training, one panel an arm.

Source: Ioffe and Szegedy 2015, Fig. 1 (b, c): percentiles 15, 50 and 85 of the inputs to the last hidden layer's units.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from normscope.plots import _draw
from normscope.plots._figure import Figure, finished
from normscope.plots._frames import Drawn, chosen, joined, layered, thinned
from normscope.plots._lines import Lines, in_words, tips

if TYPE_CHECKING:
    import polars as pl


def percentiles(
    frame: "pl.DataFrame",
    *,
    title: str,
    layer: int = -1,
    names: tuple[str, str, str] = ("p15", "p50", "p85"),
    slug: str | None = None,
    y_title: str = "Output of the layer, before the activation",
    arms: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    shared: bool = True,
    caption: str = "",
    alt: str = "",
) -> Figure:
    """Draw three percentiles over steps: a line in a band, one panel an arm.

    Args:
        frame: Records of the activation probe.
        title: What the figure shows, in a line.
        layer: Which site of an arm, counted by depth as a list index: 0 the first, -1 the last.
        names: Records of the lower edge, the line and the upper edge.
        slug: Name of the figure.
        y_title: What is drawn upward, with its unit.
        arms: All arms of the study in order.
        labels: Words for the arms.
        shared: Whether the panels share their vertical axis.
        caption: Sentences before the sentence on line and band.
        alt: Description for those who do not see it.
    """
    import altair
    import polars as pl

    slug = slug or f"percentiles-layer-{'last' if layer == -1 else layer + 1}"
    kept, notes = chosen(frame, names)
    if kept.height:
        ranked = layered(kept)
        deepest = pl.col("layer").max().over("arm")
        kept = ranked.filter(pl.col("layer") == (layer + 1 if layer >= 0 else deepest + layer + 1))
    if not kept.height:
        return _draw.nothing(slug, title, joined(caption, *notes), alt)
    seeds = kept.group_by("arm", "step", "seed", "name").agg(pl.col("value").mean())
    most = kept["seed"].n_unique()
    table = seeds.group_by("arm", "step", "name").agg(pl.col("value").median())
    table = table.pivot(on="name", index=["arm", "step"], values="value")
    table = table.with_columns(pl.lit(None, pl.Float64).alias(n) for n in names if n not in table.columns)
    low, mid, high = names
    table = table.select(
        "arm",
        pl.col("step").cast(pl.Float64).alias("x"),
        pl.col(low).alias("low"),
        pl.col(mid).alias("mid"),
        pl.col(high).alias("high"),
    )
    drawn = thinned(Drawn(table.drop_nulls().sort("arm", "x"), [], most))
    shown, styles = in_words(drawn, ("arm",), dict(labels or {}), arms)
    lines = Lines(_draw.along(altair, "x", "Optimizer step"), styles, legend=False)
    lines.band(opacity=0.22)
    for end in ("low", "high"):
        lines.line(end, width=1, opacity=0.7)
    lines.line(width=2.2)
    numbers = zip(("low", "mid", "high"), names, strict=True)
    lines.hover(tips([altair.Tooltip("x:Q", title="step", format="~g")], list(numbers)))
    shown = shown.with_columns(pl.col("arm").alias("panel"))
    data = _draw.rows(shown, {c: c for c in ("arm", "panel", "x", "low", "mid", "high")})
    chart = lines.chart(data, list(styles), independent=not shared)
    spec = finished(chart, layout="facet", subtitle=y_title, panels=len(styles))
    over = f"medians over {most} seeds" if most > 1 else "one seed"
    told = joined(
        caption, f"Line: {_percent(mid)}; band: {_percent(low)} to {_percent(high)}; {over}.", *notes, *drawn.notes
    )
    return Figure(slug, title, told, alt or f"{title}. One panel each for {', '.join(styles)}.", spec)


def _percent(name: str) -> str:
    """Write ``p15`` as words."""
    if name == "p50":
        return "median"
    return f"{name[1:]}th percentile" if name[:1] == "p" and name[1:].isdigit() else name.replace("_", " ")
