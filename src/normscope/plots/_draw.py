"""Marks that several kinds of chart share."""

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normscope.plots._figure import Figure, finished

if TYPE_CHECKING:
    import polars as pl

HEIGHT = 270
PANEL_HEIGHT = 190
#: Writes a value of an axis of equal steps; Vega's own ``~g`` keeps as few digits as tell ticks apart: 1e+1 for 10.
PLAIN = "abs(datum.value) >= 1e6 ? format(datum.value, '.2~e') : format(datum.value, ',~g')"
_HEAD = 28  # letters of a line of a panel's head


def rows(frame: "pl.DataFrame", columns: Mapping[str, str]) -> Any:
    """Return inline data with columns renamed."""
    import altair as alt

    return alt.Data(values=frame.select([*columns]).rename(dict(columns)).to_dicts())


def colour(alt: Any, styles: Mapping[str, tuple[str, list[int]]], *, show: bool = True) -> Any:
    """Return the colour channel of the arms, with the legend or without."""
    scale = alt.Scale(domain=list(styles), range=[style[0] for style in styles.values()])
    return alt.Color("arm:N", scale=scale, sort=None, legend=_legend(alt) if show else None)


def _legend(alt: Any) -> Any:
    """Return a legend of lines; it is the same for every channel, so that Vega merges them."""
    return alt.Legend(title=None, symbolType="stroke", symbolOpacity=1, symbolStrokeWidth=3)


def dash(alt: Any, styles: Mapping[str, tuple[str, list[int]]], *, show: bool = True) -> Any:
    """Return the dash channel of the arms, which tells lines apart without colour."""
    scale = alt.Scale(domain=list(styles), range=[style[1] for style in styles.values()])
    return alt.StrokeDash("arm:N", scale=scale, sort=None, legend=_legend(alt) if show else None)


def pick(alt: Any) -> Any:
    """Return the choice of an arm by a click in the legend."""
    return alt.selection_point(name="arm_pick", fields=["arm"], bind="legend")


def unless_picked(alt: Any, opacity: float, faded: float) -> Any:
    """Return the opacity channel: ``opacity``, or ``faded`` for arms other than the picked arm."""
    return alt.when(pick(alt)).then(alt.value(opacity)).otherwise(alt.value(faded))


def upward(alt: Any, field: str, *, log: bool, zero: bool = False, ticks: Sequence[float] = ()) -> Any:
    """Return a vertical axis without a title (the subtitle says what it is).

    Args:
        alt: The module Altair.
        field: Column drawn upward.
        log: Logarithmic axis.
        zero: Whether the axis begins at zero.
        ticks: Labelled values of a logarithmic axis; Vega's own choice labels too many.
    """
    if log:
        label = "abs(log(datum.value) / LN10) > 3.9 ? format(datum.value, '.0e') : format(datum.value, '~g')"
        axis = alt.Axis(title=None, labelExpr=label, **({"values": list(ticks)} if ticks else {"tickCount": 5}))
        return alt.Y(f"{field}:Q", scale=alt.Scale(type="log", nice=True), axis=axis)
    axis = alt.Axis(title=None, tickCount=5, labelExpr=PLAIN)
    return alt.Y(f"{field}:Q", scale=alt.Scale(zero=zero, nice=5), axis=axis)


def log_ticks(frame: "pl.DataFrame", columns: Sequence[str] = ("low", "mid", "high")) -> list[float]:
    """Return round values over the range of some columns: 1, 2, 5 within two decades, else powers of ten."""
    present = [c for c in columns if c in frame.columns]
    ends = [v for c in present for v in frame[c].drop_nulls().to_list() if v > 0]
    return round_values(min(ends), max(ends)) if ends else []


def round_values(low: float, high: float) -> list[float]:
    """Return round values around two positive numbers: 1, 2, 5 within two decades, else powers of ten."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, math.ceil((last - first) / 7))
    within = (1, 2, 5) if last - first <= 2 else (1,)
    return [float(f"{m}e{d}") for d in range(first - first % every, last + 1, every) for m in within]


def along(
    alt: Any, field: str, title: str, *, whole: bool = True, log: bool = False, ticks: list[float] | None = None
) -> Any:
    """Return a horizontal axis, labelled at ``ticks``, else at round numbers."""
    options: dict[str, Any] = {"values": ticks} if ticks else {"tickCount": 6}
    options |= {"format": "~s", "tickMinStep": 1} if whole and not log else {"format": "~g"}
    axis = alt.Axis(title=title, **options)
    scale = alt.Scale(type="log", nice=False) if log else alt.Scale(zero=False, nice=False)
    return alt.X(f"{field}:Q", axis=axis, scale=scale)


def panels(alt: Any, chart: Any, order: Sequence[str], *, independent: bool, anchor: str = "") -> Any:
    """Split a layered chart by ``panel``, in order; long heads of panels are broken into lines.

    Args:
        alt: The module Altair.
        chart: The chart.
        order: The panels.
        independent: Whether each panel has a vertical scale of its own.
        anchor: ``"end"`` where heads reach over wide labels on the left.
    """
    lines = {name: textwrap.wrap(name, _HEAD) for name in order if len(name) > _HEAD}
    told: dict[str, Any] = {"labelExpr": f"({json.dumps(lines)})[(datum.label)] || (datum.label)"} if lines else {}
    if anchor:
        told["labelAnchor"] = anchor
    facet = alt.Facet("panel:N", sort=list(order), title=None, header=alt.Header(title=None, **told))
    return (
        chart.facet(facet=facet, columns=2, spacing=28)
        .resolve_scale(y="independent" if independent else "shared")
        .resolve_axis(x="independent", y="independent")
    )


def nothing(slug: str, title: str, caption: str, alt_text: str) -> Figure:
    """Return a figure that says that there is nothing to draw."""
    import altair as alt

    data = alt.Data(values=[{"t": "nothing to draw"}])
    chart = alt.Chart(data, height=80).mark_text(fontSize=13, fontStyle="italic", opacity=0.8).encode(text="t:N")
    spec = finished(chart, layout="single", subtitle="")
    return Figure(slug, title, caption, alt_text or f"{title}: nothing to draw.", spec)
