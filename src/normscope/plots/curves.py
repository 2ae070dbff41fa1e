"""Curves: a recorded quantity over training, one line an arm, with its spread over seeds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normscope.plots import _draw
from normscope.plots._figure import Figure, finished
from normscope.plots._frames import band_words, chosen, joined, natural_key, summarised
from normscope.plots._lines import Lines, in_words, tips
from normscope.plots._names import readable

if TYPE_CHECKING:
    import polars as pl


def curves(
    frame: "pl.DataFrame",
    *,
    y: str | Sequence[str],
    title: str,
    slug: str | None = None,
    x: str = "step",
    by: str = "arm",
    facet: str | None = None,
    log: bool = False,
    center: str = "mean",
    band: str = "p10-90",
    x_title: str = "Optimizer step",
    y_title: str | None = None,
    log_x: bool = False,
    arms: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    reference: Mapping[str, float] | None = None,
    caption: str = "",
    alt: str = "",
) -> Figure:
    """Draw one or several recorded quantities over steps (or another column).

    Args:
        frame: Records, or a wide frame whose column ``y`` is drawn.
        y: Name of the record, or several names: then each has a panel with an axis of its own.
        title: What the figure shows, in a line.
        slug: Name of the figure; made from ``y`` if None.
        x: Column along the horizontal axis; numbers.
        by: Column that tells the lines apart.
        facet: Column that splits panels (``"site"``, a point of the grid); ``"name"`` is implied by several ``y``.
        log: Logarithmic vertical axis; the mean over seeds is then geometric.
        center: ``"mean"`` or ``"median"`` over seeds.
        band: ``"p10-90"``, ``"range"``, ``"ci"`` (95 % of the mean) or ``"none"``; the caption says which.
        x_title: Title of the horizontal axis, with its unit.
        y_title: What is drawn upward, with its unit; from ``y`` if None.
        log_x: Logarithmic horizontal axis.
        arms: All arms of the study in order, so that colours are the same in all its figures.
        labels: Words for arms and panels, by their name in the frame.
        reference: Horizontal dashed lines by their label (a theoretical value, chance level).
        caption: Sentences before those on line and band.
        alt: Description for those who do not see it; made from the rest if empty.

    Returns:
        The figure; if the frame holds nothing to draw, the figure says so.
    """
    import altair
    import polars as pl

    names = [y] if isinstance(y, str) else list(y)
    slug = slug or "-".join(["curves", *names]).replace("@", "-").replace("_", "-")
    several = len(names) > 1
    panel = facet or ("name" if several else None)
    kept, notes = chosen(frame, names, log=log)
    words = {name: readable(name) for name in names} | dict(labels or {})
    if log_x:
        kept = kept.filter(pl.col(x) > 0)
    if not kept.height:
        return _draw.nothing(slug, title, joined(caption, *notes), alt)
    drawn = summarised(kept, x=x, panel=panel, by=by, log=log, center=center, band=band)
    order = names if panel == "name" else _in_order(drawn.frame["panel"].unique().to_list())
    table, styles = in_words(drawn, ("arm", "panel"), words, arms)
    x_ticks = _draw.log_ticks(drawn.frame, ["x"]) if log_x else None
    across = _draw.along(altair, "x", x_title, whole=x == "step", log=log_x, ticks=x_ticks)
    lines = Lines(across, styles, log, _draw.log_ticks(drawn.frame) if log else (), legend=len(styles) > 1)
    if band != "none" and drawn.seeds > 1:
        lines.band(opacity=0.2, clip=True)
    lines.line(width=2, faded=0.12, clip=True)
    named = [altair.Tooltip("arm:N", title="arm"), altair.Tooltip("x:Q", title=x_title.lower(), format="~g")]
    lines.hover(tips(named, _numbers(center, band, drawn.seeds)))
    for label, value in (reference or {}).items():
        lines.layers += _reference(altair, label, value)
    panels = [words.get(name, name) for name in order] if panel else []
    data = _draw.rows(table, {c: c for c in ("arm", "panel", "x", "mid", "low", "high")})
    chart = lines.chart(data, panels, independent=panel == "name")
    subtitle = y_title or ("" if several else readable(names[0]))
    subtitle = ", ".join(part for part in (subtitle, "logarithmic axis" if log else "") if part)
    layout = "facet" if panel else "single"
    spec = finished(
        chart, layout=layout, subtitle=subtitle, panels=len(order), legend=tuple(styles) if len(styles) > 1 else ()
    )
    told = joined(caption, band_words(drawn, center, band, log), *notes, *drawn.notes)
    described = alt or f"{title}. {subtitle or 'Lines'} against {x_title.lower()} for {', '.join(styles)}."
    return Figure(slug, title, told, described, spec)


def _in_order(values: Sequence[str]) -> list[str]:
    """Sort panels as numbers where they are numbers, else in natural order."""
    try:
        return sorted(values, key=float)
    except ValueError:
        return sorted(values, key=natural_key)


def _numbers(center: str, band: str, seeds: int) -> list[tuple[str, str]]:
    """Return the columns of numbers in the tooltip, with their titles."""
    ends = {"p10-90": ("10 %", "90 %"), "range": ("lowest seed", "highest seed"), "ci": ("CI low", "CI high")}
    shown = [("mid", center if seeds > 1 else "value")]
    if seeds > 1 and band in ends:
        shown += list(zip(("low", "high"), ends[band], strict=True))
    return shown


def _reference(altair: Any, label: str, value: float) -> list[Any]:
    """Return a dashed horizontal line with its label at the right end."""
    base = altair.Chart(altair.Data(values=[{"at": value, "text": label}])).encode(y=altair.Y("at:Q"))
    rule = base.mark_rule(strokeDash=[5, 4], opacity=0.8)
    text = base.mark_text(align="right", baseline="bottom", dy=-3, fontSize=11)
    return [rule, text.encode(x=altair.value("width"), text="text:N")]
