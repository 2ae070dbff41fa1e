"""By layer: a quantity of every layer beside the layer's name, when training began and now."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normscope.plots import _draw
from normscope.plots._figure import Figure, finished
from normscope.plots._frames import chosen, joined, natural_key
from normscope.plots._layers import by_name, row_height
from normscope.plots._names import readable
from normscope.plots._theme import arm_styles

if TYPE_CHECKING:
    import polars as pl

_PANEL = 340  # pixels, names of layers included
Line = tuple[str, float | Mapping[str, float]]  # words, and a value or a value for each layer


def by_layer(
    frame: "pl.DataFrame",
    *,
    y: str | Sequence[str],
    title: str,
    order: Sequence[str] = (),
    slug: str | None = None,
    log: bool = False,
    x_title: str | None = None,
    theory: Line | None = None,
    arms: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
    caption: str = "",
    alt: str = "",
) -> Figure:
    """Draw the first and the last value of every layer, the layers by name from the input (top) to the output.

    Args:
        frame: Records with ``site``; seeds are averaged.
        y: Name of the record, or several names: then each has a panel with an axis of its own.
        title: What the figure shows, in a line.
        order: The layers from input to output; those that are not named come last, in natural order of names.
        slug: Name of the figure; made from ``y`` if None.
        log: Logarithmic axis.
        x_title: What is drawn, with its unit; from ``y`` if None.
        theory: Words and value of a dashed line; a mapping gives a value for each layer. Not with several names.
        arms: All arms in order, so that colours are the same in all figures.
        labels: Words for the arms.
        caption: Sentences before those on the marks.
        alt: Description for those who do not see it.
    """
    import altair
    import polars as pl

    names = [y] if isinstance(y, str) else list(y)
    slug = slug or "-".join(["layers", *names]).replace("@", "-").replace("_", "-")
    kept, notes = chosen(frame, names, log=log)
    if not kept.height:
        return _draw.nothing(slug, title, joined(caption, *notes), alt)
    sites = _in_order(kept["site"].cast(pl.String).unique().to_list(), order)
    words = dict(labels or {})
    table = _ends(kept, sites).with_columns(pl.col("arm").replace(words), pl.col("panel").replace(_panels(names)))
    styles = {words.get(arm, arm): style for arm, style in arm_styles(kept["arm"].unique().to_list(), arms).items()}
    several, line = len(names) > 1, theory if len(names) == 1 else None
    chart = _chart(altair, table, sites, styles, line, log)
    if several:
        chart = _draw.panels(altair, chart, [*_panels(names).values()], independent=False, anchor="end")
        chart = chart.resolve_scale(x="independent")
    legend = tuple(styles) if len(styles) > 1 else ()
    if legend:
        chart = chart.add_params(_draw.pick(altair))
    subtitle = "" if several else (x_title or readable(names[0])) + (", logarithmic axis" if log else "")
    layout = "facet" if several else "single"
    spec = finished(chart, layout=layout, subtitle=subtitle, panels=len(names), least=_PANEL, legend=legend)
    when = _when(table)
    told = joined(caption, when, f"Dashed: {line[0]}." if line else "", *notes)
    shown = f"{title}. {subtitle or 'Several quantities'} by layer from {sites[0]} to {sites[-1]}. {when}"
    return Figure(slug, title, told, alt or shown, spec)


def _in_order(present: Sequence[str], order: Sequence[str]) -> list[str]:
    rank = {site: index for index, site in enumerate(order)}
    return sorted(present, key=lambda site: (rank.get(site, len(rank)), natural_key(site)))


def _chart(
    alt: Any, table: "pl.DataFrame", sites: Sequence[str], styles: Mapping[str, Any], line: Line | None, log: bool
) -> Any:
    """Return all marks of one panel."""
    across = _across(alt, table, log, *(_drawn_at(line, sites) if line else ()))
    data = _draw.rows(table, {c: c for c in table.columns if c != "rank"})
    chart = _marks(alt, data, sites, styles, across, moved=_moved(table))
    if line is not None:
        chart = alt.layer(*_theory(alt, line, sites, across, words=len(styles) == 1), chart)
    return chart.properties(height=row_height(len(sites), 1 if len(styles) < 3 else 1.4))


def _moved(table: "pl.DataFrame") -> bool:
    """Return whether any layer was read more than once."""
    return bool((table["first_step"] < table["last_step"]).any())


def _when(table: "pl.DataFrame") -> str:
    """Return the sentence on steps and marks."""
    first, last = min(table["first_step"].to_list()), max(table["last_step"].to_list())
    return f"Ring: step {first:,}; dot: step {last:,}." if _moved(table) else f"At step {last:,}."


def _panels(names: Sequence[str]) -> dict[str, str]:
    return {name: readable(name) for name in names}


def _ends(kept: "pl.DataFrame", sites: Sequence[str]) -> "pl.DataFrame":
    """Return the first and the last value of each arm, quantity and layer, means over seeds; layers in order."""
    import polars as pl

    means = kept.group_by("arm", "name", "site", "step").agg(pl.col("value").mean()).sort("step")
    ranks = pl.DataFrame({"site": sites, "rank": range(len(sites))}, schema={"site": pl.String, "rank": pl.Int64})
    return (
        means.group_by("arm", "name", "site")
        .agg(
            pl.col("step").first().alias("first_step"),
            pl.col("step").last().alias("last_step"),
            pl.col("value").first().alias("first"),
            pl.col("value").last().alias("now"),
        )
        .select(
            pl.col("arm", "site").cast(pl.String),
            pl.col("name").cast(pl.String).alias("panel"),
            "first_step",
            "last_step",
            "first",
            "now",
        )
        .join(ranks, on="site")
        .sort("panel", "arm", "rank")
    )


def _marks(
    alt: Any,
    data: Any,
    sites: Sequence[str],
    styles: Mapping[str, Any],
    across: Callable[[str], Any],
    *,
    moved: bool,
) -> Any:
    """Return rings, dots and the lines between them."""
    several = len(styles) > 1
    upward = by_name(alt, "site", sites)
    offset = {"yOffset": alt.YOffset("arm:N", sort=list(styles), scale=alt.Scale(paddingOuter=0.2))} if several else {}
    shown: dict[str, Any] = {"y": upward, "color": _draw.colour(alt, styles, show=several), **offset}
    if several:
        shown["opacity"] = _draw.unless_picked(alt, 1, 0.12)
    tooltip = [
        *([alt.Tooltip("arm:N", title="cell")] if several else []),
        alt.Tooltip("site:N", title="layer"),
        *([alt.Tooltip("first:Q", title="first", format=".4~g")] if moved else []),
        alt.Tooltip("now:Q", title="last", format=".4~g"),
        alt.Tooltip("last_step:Q", title="step", format=","),
    ]
    dots = alt.Chart().mark_point(filled=True, size=44, opacity=1).encode(x=across("now"), tooltip=tooltip, **shown)
    layers = [dots]
    if moved:
        lines = alt.Chart().mark_rule(strokeWidth=1.4).encode(x=across("first"), x2="now:Q", **shown)
        rings = alt.Chart().mark_point(filled=False, size=36, strokeWidth=1.3)
        layers = [lines, rings.encode(x=across("first"), tooltip=tooltip, **shown), dots]
    return alt.layer(*layers, data=data)


def _across(alt: Any, table: "pl.DataFrame", log: bool, *beside: float) -> Callable[[str], Any]:
    """Return what makes the horizontal axis of a column; all columns have the same.

    Args:
        alt: The module Altair.
        table: Columns ``first`` and ``now``.
        log: Logarithmic axis.
        beside: Values that must be on it too.
    """
    values = [*table["first"].to_list(), *table["now"].to_list(), *beside]
    low, high = min(values), max(values)
    if log:
        label = "abs(log(datum.value) / LN10) > 3.9 ? format(datum.value, '.0e') : format(datum.value, '~g')"
        axis = alt.Axis(title=None, labelExpr=label, grid=True, values=_draw.round_values(low, high))
        scale = alt.Scale(type="log", nice=False, padding=8)
    else:
        axis = alt.Axis(title=None, tickCount=4, labelExpr=_draw.PLAIN, grid=True, labelSeparation=8)
        shares = {"domain": [0, 1]} if low == high == 0 else {}
        scale = alt.Scale(zero=0 <= low <= high / 2, nice=4, **shares)
    return lambda column: alt.X(f"{column}:Q", scale=scale, axis=axis)


def _drawn_at(theory: Line, sites: Sequence[str]) -> list[float]:
    value = theory[1]
    return [value[site] for site in sites if site in value] if isinstance(value, Mapping) else [value]


def _theory(alt: Any, theory: Line, sites: Sequence[str], across: Callable[[str], Any], *, words: bool) -> list[Any]:
    """Return the dashed line of theory; with one value also its words, where no legend stands in their place."""
    value = theory[1]
    style = {"strokeDash": [5, 4], "opacity": 0.85}
    if isinstance(value, Mapping):
        rows = [{"site": site, "rank": rank, "now": value[site]} for rank, site in enumerate(sites) if site in value]
        base = alt.Chart(alt.Data(values=rows)).encode(y=by_name(alt, "site", sites), x=across("now"))
        line = base.mark_line(strokeWidth=1.6, color="#7a7f89", **style)
        return [line.encode(order=alt.Order("rank:Q"))]
    base = alt.Chart(alt.Data(values=[{"now": value, "text": theory[0]}])).encode(x=across("now"))
    text = base.mark_text(align="left", baseline="bottom", dx=4, dy=-2, fontSize=11)
    rule = base.mark_rule(**style)
    return [rule, text.encode(y=alt.value(0), text="text:N")] if words else [rule]
