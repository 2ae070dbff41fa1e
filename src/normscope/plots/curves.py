"""Curves: a recorded quantity over training, one line an arm, with its spread over seeds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normscope.plots import _draw
from normscope.plots._figure import Figure, finished
from normscope.plots._frames import band_words, chosen, joined, summarised
from normscope.plots._names import readable
from normscope.plots._theme import arm_styles

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
        The figure; one that says so where the frame holds nothing to draw.
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
    present = drawn.frame["arm"].unique().to_list()
    styles = {words.get(arm, arm): style for arm, style in arm_styles(present, arms).items()}
    order = names if panel == "name" else _in_order(drawn.frame["panel"].unique().to_list())
    table = drawn.frame.with_columns(pl.col("arm", "panel").replace(words))
    data = _draw.rows(table, {"arm": "arm", "panel": "panel", "x": "x", "mid": "mid", "low": "low", "high": "high"})
    ticks = _draw.log_ticks(drawn.frame) if log else []
    pick = altair.selection_point(name="arm_pick", fields=["arm"], bind="legend")
    hover = altair.selection_point(
        name="near", fields=["x"], nearest=True, on="pointermove", clear="pointerout", empty=False
    )
    across = _draw.along(altair, "x", x_title, whole=x == "step", log=log_x)
    up = _draw.upward(altair, "mid", log=log, ticks=ticks)
    base = altair.Chart().encode(x=across)
    line = base.mark_line(strokeWidth=2, clip=True).encode(
        y=up,
        color=_draw.colour(altair, styles),
        strokeDash=_draw.dash(altair, styles),
        opacity=altair.when(pick).then(altair.value(1)).otherwise(altair.value(0.12)),
    )
    layers = [line]
    if band != "none" and drawn.seeds > 1:
        area = base.mark_area(clip=True).encode(
            y=_draw.upward(altair, "low", log=log, ticks=ticks),
            y2="high:Q",
            color=_draw.colour(altair, styles),
            opacity=altair.when(pick).then(altair.value(0.2)).otherwise(altair.value(0.03)),
        )
        layers.insert(0, area)
    tips = [altair.Tooltip("arm:N", title="arm"), altair.Tooltip("x:Q", title=x_title.lower(), format="~g")]
    tips += [altair.Tooltip(f"{c}:Q", title=t, format=".4~g") for c, t in _tips(center, band, drawn.seeds)]
    points = base.mark_point(filled=True, size=46).encode(
        y=up,
        color=_draw.colour(altair, styles),
        opacity=altair.when(hover).then(altair.value(1)).otherwise(altair.value(0)),
        tooltip=tips,
    )
    layers.append(points.add_params(hover))
    for label, value in (reference or {}).items():
        layers += _reference(altair, label, value)
    chart = altair.layer(*layers, data=data).properties(height=_draw.PANEL_HEIGHT if panel else _draw.HEIGHT)
    chart = chart.add_params(pick)
    subtitle = y_title or ("" if several else readable(names[0]))
    subtitle = ", ".join(part for part in (subtitle, "logarithmic axis" if log else "") if part)
    layout = "facet" if panel else "single"
    if panel:
        chart = _draw.panels(altair, chart, [words.get(p, p) for p in order], independent=panel == "name")
    spec = finished(chart, layout=layout, subtitle=subtitle, panels=len(order), legend=tuple(styles))
    told = joined(caption, band_words(drawn, center, band, log), *notes, *drawn.notes)
    described = alt or f"{title}. {subtitle or 'Lines'} against {x_title.lower()} for {', '.join(styles)}."
    return Figure(slug, title, told, described, spec)


def _in_order(values: Sequence[str]) -> list[str]:
    """Sort panels as numbers where they are numbers, else in natural order."""
    from normscope.plots._frames import natural_key

    try:
        return sorted(values, key=float)
    except ValueError:
        return sorted(values, key=natural_key)


def _tips(center: str, band: str, seeds: int) -> list[tuple[str, str]]:
    """Return the fields that the tooltip shows, with their titles."""
    ends = {"p10-90": ("10 %", "90 %"), "range": ("lowest seed", "highest seed"), "ci": ("CI low", "CI high")}
    tips = [("mid", center if seeds > 1 else "value")]
    if seeds > 1 and band in ends:
        tips += list(zip(("low", "high"), ends[band], strict=True))
    return tips


def _reference(altair: Any, label: str, value: float) -> list[Any]:
    """Return a dashed horizontal line with its label at the right end."""
    base = altair.Chart(altair.Data(values=[{"at": value, "text": label}])).encode(y=altair.Y("at:Q"))
    rule = base.mark_rule(strokeDash=[5, 4], opacity=0.8)
    text = base.mark_text(align="right", baseline="bottom", dy=-3, fontSize=11)
    return [rule, text.encode(x=altair.value("width"), text="text:N")]
