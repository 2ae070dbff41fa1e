"""By depth: a quantity of every layer, from input to output, at chosen steps."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from normscope.plots import _draw
from normscope.plots._figure import Figure, finished
from normscope.plots._frames import band_words, chosen, joined, layered, summarised
from normscope.plots._lines import Lines, in_words, tips
from normscope.plots._names import readable

if TYPE_CHECKING:
    import polars as pl


def by_depth(
    frame: "pl.DataFrame",
    *,
    y: str,
    title: str,
    steps: Sequence[int] | None = None,
    slug: str | None = None,
    log: bool = True,
    center: str = "mean",
    band: str = "p10-90",
    y_title: str | None = None,
    arms: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    shared: bool = True,
    caption: str = "",
    alt: str = "",
) -> Figure:
    """Draw a per-layer record against the layer's index, one line an arm, one panel a step.

    Args:
        frame: Records with ``site``; the index is the rank of the site within its arm, in natural order of names.
        y: Name of the record.
        title: What the figure shows, in a line.
        steps: Steps to show, each moved to the nearest recorded one; None for the first, the middle and the last.
        slug: Name of the figure.
        log: Logarithmic vertical axis; the mean over seeds is then geometric.
        center: ``"mean"`` or ``"median"`` over seeds.
        band: As in ``curves``.
        y_title: What is drawn upward, with its unit.
        arms: All arms of the study in order.
        labels: Words for the arms.
        shared: Whether the panels share their vertical axis.
        caption: Sentences before those on line and band.
        alt: Description for those who do not see it.
    """
    import altair
    import polars as pl

    slug = slug or f"depth-{y}".replace("@", "-").replace("_", "-")
    kept, notes = chosen(frame, [y], log=log)
    if not kept.height:
        return _draw.nothing(slug, title, joined(caption, *notes), alt)
    recorded = kept["step"].unique().sort().to_list()
    wanted = steps if steps is not None else (recorded[0], recorded[len(recorded) // 2], recorded[-1])
    at = sorted({min(recorded, key=lambda step: abs(step - goal)) for goal in wanted})
    ranked = layered(kept).filter(pl.col("step").is_in(at))
    drawn = summarised(ranked, x="layer", panel="step", log=log, center=center, band=band)
    shown, styles = in_words(drawn, ("arm",), dict(labels or {}), arms)
    panels = {str(step): f"Step {step:,}" for step in at}
    shown = shown.with_columns(pl.col("panel").replace(panels))
    across = altair.X(
        "x:Q",
        axis=altair.Axis(title="Layer, from input to output", tickMinStep=1, format="d", tickCount=8),
        scale=altair.Scale(zero=False, nice=False),
    )
    lines = Lines(across, styles, log, _draw.log_ticks(drawn.frame) if log else (), legend=len(styles) > 1)
    if band != "none" and drawn.seeds > 1:
        lines.band(opacity=0.18)
    lines.line(width=2)
    named = [altair.Tooltip("arm:N", title="arm"), altair.Tooltip("x:Q", title="layer")]
    lines.points(tips(named, [("mid", center), ("low", "low"), ("high", "high")]), size=36)
    panelled = len(at) > 1
    data = _draw.rows(shown, {c: c for c in ("arm", "panel", "x", "mid", "low", "high")})
    chart = lines.chart(data, list(panels.values()) if panelled else [], independent=not shared)
    subtitle = (y_title or readable(y)) + (", logarithmic axis" if log else "")
    layout = "facet" if panelled else "single"
    spec = finished(
        chart, layout=layout, subtitle=subtitle, panels=len(at), legend=tuple(styles) if len(styles) > 1 else ()
    )
    where = f"At step {at[0]:,}." if len(at) == 1 else ""
    told = joined(caption, where, band_words(drawn, center, band, log), *notes, *drawn.notes)
    return Figure(slug, title, told, alt or f"{title}. Lines over the layer's index for {', '.join(styles)}.", spec)
