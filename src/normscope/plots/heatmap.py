"""Heatmap: a per-layer quantity over depth and training, one panel an arm."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from normscope.plots import _draw
from normscope.plots._figure import Figure, finished
from normscope.plots._frames import chosen, joined, layered, natural_key
from normscope.plots._layers import by_name, row_height
from normscope.plots._names import readable
from normscope.plots._theme import order_arms

if TYPE_CHECKING:
    import polars as pl

_CELLS = 1300


def heatmap(
    frame: "pl.DataFrame",
    *,
    y: str,
    title: str,
    slug: str | None = None,
    log: bool = False,
    middle: float | None = None,
    order: Sequence[str] | None = None,
    value_title: str | None = None,
    arms: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    caption: str = "",
    alt: str = "",
) -> Figure:
    """Draw a per-layer record as colour over step (across) and layer (upward, the output on top).

    Args:
        frame: Records with ``site``; the layer is the rank of the site within its arm.
        y: Name of the record.
        title: What the figure shows, in a line.
        slug: Name of the figure.
        log: Logarithmic colour scale.
        middle: Value that has the neutral colour of a two-sided scale; None for a one-sided scale.
        order: The layers from input to output: they then stand on the axis by name, the input on top.
        value_title: What the colour means, with its unit.
        arms: All arms of the study in order.
        labels: Words for the arms.
        caption: Sentences before those on what was averaged.
        alt: Description for those who do not see it.
    """
    import altair
    import polars as pl

    slug = slug or f"heatmap-{y}".replace("@", "-").replace("_", "-")
    kept, notes = chosen(frame, [y], log=log)
    if not kept.height:
        return _draw.nothing(slug, title, joined(caption, *notes), alt)
    ranked = layered(kept) if order is None else kept.with_columns(pl.col("site").cast(pl.String).alias("layer"))
    recorded = ranked["step"].unique().sort().to_list()
    rows = ranked.select("arm", "layer").unique().height
    bins = max(2, min(len(recorded), 60, _CELLS // max(rows, 1)))
    first, last = recorded[0], recorded[-1]
    width = (last - first + 1) / bins
    slot = ((pl.col("step") - first) / width).floor()
    value = pl.col("value").log() if log else pl.col("value")
    table = ranked.with_columns((first + slot * width).alias("x"), value.alias("v"))
    table = table.group_by("arm", "layer", "x").agg(pl.col("v").mean())
    table = table.with_columns(
        (pl.col("v").exp() if log else pl.col("v")).alias("mid"), (pl.col("x") + width).alias("x2")
    ).sort("arm", "layer", "x")
    words = dict(labels or {})
    panels = [words.get(arm, arm) for arm in order_arms(table["arm"].unique().to_list(), arms)]
    shown = table.with_columns(pl.col("arm").replace(words).alias("panel"))
    data = _draw.rows(shown, {c: c for c in ("panel", "layer", "x", "x2", "mid")})
    kind = {"type": "log"} if log else {}
    labelled = {"values": _draw.log_ticks(shown, ["mid"])} if log else {"tickCount": 4}
    scheme = {"scheme": "blueorange", "domainMid": middle} if middle is not None else {"scheme": "viridis"}
    title_words = value_title or readable(y)
    chart = (
        altair.Chart(data, height=_draw.PANEL_HEIGHT if order is None else row_height(rows))
        .mark_rect()
        .encode(
            x=altair.X(
                "x:Q",
                axis=altair.Axis(title="Optimizer step", tickCount=6, format="~s"),
                scale=altair.Scale(zero=False, nice=False),
            ),
            x2="x2:Q",
            y=altair.Y("layer:O", sort="descending", axis=altair.Axis(title=None, domain=False))
            if order is None
            else by_name(altair, "layer", _present(table, order)),
            color=altair.Color(
                "mid:Q",
                scale=altair.Scale(**kind, **scheme),
                legend=altair.Legend(title=None, format="~g", gradientLength=180, **labelled),
            ),
            tooltip=[
                altair.Tooltip("panel:N", title="arm"),
                altair.Tooltip("layer:O", title="layer"),
                altair.Tooltip("x:Q", title="from step", format="~g"),
                altair.Tooltip("mid:Q", title="mean", format=".4~g"),
            ],
        )
    )
    panelled = len(panels) > 1
    if panelled:
        chart = _draw.panels(altair, chart, panels, independent=False)
    upward = "Upward: layer, the output on top" if order is None else "Downward: layers, from the input"
    subtitle = f"Colour: {title_words}{', logarithmic' if log else ''}. {upward}"
    spec = finished(chart, layout="facet" if panelled else "single", subtitle=subtitle, panels=len(panels))
    seeds = kept["seed"].n_unique()
    over = f"{'Geometric mean' if log else 'Mean'} over {seeds} seeds" if seeds > 1 else "One seed"
    span = f" and over {width:.3g} steps a cell" if bins < len(recorded) else ""
    told = joined(caption, f"{over}{span}.", *notes)
    return Figure(slug, title, told, alt or f"{title}. One panel each for {', '.join(panels)}.", spec)


def _present(table: "pl.DataFrame", order: Sequence[str]) -> list[str]:
    """Return the layers that were read, in order; those without a place in it come last."""
    rank = {layer: index for index, layer in enumerate(order)}
    return sorted(table["layer"].unique().to_list(), key=lambda site: (rank.get(site, len(rank)), natural_key(site)))
