"""Forest plot: a row for each verdict, with its interval, its margin and its outcome."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from normscope.plots._figure import Figure, finished
from normscope.plots._frames import joined
from normscope.plots._theme import OUTCOME_COLOURS, OUTCOME_SHAPES
from normscope.plots._words import effect_words, margin_words, natural, scale_words
from normscope.records import Outcome, Verdict

_ROW = 54  # pixels: a line of words, and the interval under it
_SCALES = ("log-ratio", "difference", "value")


def forest(
    verdicts: Sequence[Verdict],
    *,
    title: str = "Effects with their intervals",
    slug: str = "forest",
    labels: Mapping[str, str] | None = None,
    parts: bool = False,
    caption: str = "",
    alt: str = "",
) -> Figure:
    """Draw verdicts with intervals and margins; verdicts on different scales have an axis each.

    Args:
        verdicts: In the order wanted.
        title: What the figure shows, in a line.
        slug: Name of the figure.
        labels: Words for a row, by study slug or endpoint; else a primary verdict is named by its study's slug, a part
            by its endpoint.
        parts: Whether the parts of each verdict follow it.
        caption: Sentences before those on how to read it.
        alt: Description for those who do not see it.

    Returns:
        The figure. Intervals that go on beyond the axis, or have no bound, end in an arrow.
    """
    import altair

    from normscope.plots._draw import nothing

    rows = [v for verdict in verdicts for v in ((verdict, *verdict.parts) if parts else (verdict,))]
    if not rows:
        return nothing(slug, title, joined(caption, "There are no verdicts."), alt)
    scales = [s for s in _SCALES if any(v.effect.scale == s for v in rows)]
    scales += sorted({v.effect.scale for v in rows} - set(scales))
    panels = [_panel(altair, scale, [v for v in rows if v.effect.scale == scale], labels or {}) for scale in scales]
    chart = altair.vconcat(*panels, spacing=18) if len(panels) > 1 else panels[0]
    layout = "stack" if len(panels) > 1 else "single"
    spec = finished(chart, layout=layout, subtitle="")
    longest = max(len(effect_words(v.effect, margin=v.margin)) for v in rows)
    spec["usermeta"]["normscope"]["words"] = round(longest * 6 + 10)
    told = joined(
        caption,
        "Mark and bar: effect and interval, positive in the direction of the claim; shape and colour: the verdict",
        "Upright strokes: thick, the margin that the whole interval must clear; thin, no effect",
        "An arrow means that the interval goes on" if any(_cut(v, rows) for v in rows) else "",
    )
    lines = "; ".join(f"{_label(v, labels or {})}: {effect_words(v.effect)}, {v.outcome.value}" for v in rows)
    return Figure(slug, title, told, alt or f"{title}. {lines}.", spec)


def _label(verdict: Verdict, labels: Mapping[str, str]) -> str:
    """Return the words that stand over a row."""
    own = verdict.study if verdict.primary else verdict.endpoint
    return labels.get(verdict.endpoint) or labels.get(verdict.study if verdict.primary else "") or own


def _panel(alt: Any, scale: str, verdicts: Sequence[Verdict], labels: Mapping[str, str]) -> Any:
    """Draw the verdicts of one scale."""
    low, high = _domain(scale, verdicts)
    rows = [_row(v, labels, low, high, i) for i, v in enumerate(verdicts)]
    data = alt.Data(values=rows)
    kind = "log" if scale == "log-ratio" else "linear"
    axis = alt.Axis(
        title=f"Effect as a {scale_words(scale)}" if scale != "value" else "Effect", format="~g", tickCount=6
    )
    scale_x = alt.Scale(type=kind, domain=[low, high], nice=False)
    across = alt.X("mid:Q", scale=scale_x, axis=axis)
    up = alt.Y("row:O", axis=None, sort=None)
    colours = alt.Color(
        "outcome:N",
        legend=None,
        scale=alt.Scale(domain=[o.value for o in Outcome], range=[OUTCOME_COLOURS[o] for o in Outcome]),
    )
    shapes = alt.Shape(
        "outcome:N",
        legend=None,
        scale=alt.Scale(domain=[o.value for o in Outcome], range=[OUTCOME_SHAPES[o] for o in Outcome]),
    )
    tips = [alt.Tooltip(f"{f}:N", title=f) for f in ("claim", "endpoint", "verdict", "effect", "margin", "seeds")]
    base = alt.Chart()
    # The words stand on a line of their own over the interval: a column of labels would leave a phone no chart.
    words = base.mark_text(align="left", dy=-17, fontWeight=600, style="row-label")
    effect = base.mark_text(align="right", dy=-17, style="row-effect")
    bars = base.mark_rule(strokeWidth=2.5).encode(y=up, x=alt.X("from:Q", scale=scale_x), x2="to:Q", color=colours)
    layers = [
        base.mark_rule(opacity=0.18).encode(y=up, x=alt.value(0), x2=alt.value("width")),
        words.encode(y=up, x=alt.value(0), text="label:N"),
        effect.encode(y=up, x=alt.value("width"), text="words:N"),
    ]
    zero = 1.0 if scale == "log-ratio" else 0.0
    if low <= zero <= high:
        none = base.mark_tick(orient="vertical", size=18, thickness=1, opacity=0.55)
        layers.append(none.encode(y=up, x=alt.X(datum=zero)))
    layers.append(bars)
    tick = base.transform_filter("isValid(datum.margin_at)").mark_tick(orient="vertical", size=20, thickness=2)
    layers.append(tick.encode(y=up, x=alt.X("margin_at:Q"), tooltip=tips))
    for end, sign in (("from", "left"), ("to", "right")):
        arrow = base.transform_filter(f"datum.cut_{sign}").mark_point(filled=True, shape=f"triangle-{sign}", size=70)
        layers.append(arrow.encode(y=up, x=alt.X(f"{end}:Q"), color=colours))
    dots = base.transform_filter("isValid(datum.mid)").mark_point(filled=True, size=110, opacity=1)
    layers.append(dots.encode(y=up, x=across, color=colours, shape=shapes, tooltip=tips))
    return alt.layer(*layers, data=data).properties(height=_ROW * len(rows))


def _row(verdict: Verdict, labels: Mapping[str, str], low: float, high: float, index: int) -> dict[str, Any]:
    """Return a verdict's row, in the numbers of the axis."""
    effect = verdict.effect
    point, start, end = (natural(v, effect.scale) for v in (effect.point, effect.low, effect.high))
    measured = math.isfinite(effect.point) and math.isfinite(point)
    margin = natural(verdict.margin, effect.scale)
    return {
        "row": index,
        "label": _label(verdict, labels),
        "words": effect_words(effect, margin=verdict.margin),
        "outcome": verdict.outcome.value,
        "verdict": verdict.outcome.value,
        "claim": verdict.claim,
        "endpoint": verdict.endpoint,
        "effect": f"{effect_words(effect, margin=verdict.margin)} at {effect.level:.0%}",
        "margin": margin_words(verdict.margin, effect.scale),
        "seeds": effect.n,
        "mid": min(max(point, low), high) if measured else None,
        "from": min(max(start, low), high) if measured and not math.isnan(start) else None,
        "to": min(max(end, low), high) if measured and not math.isnan(end) else None,
        "margin_at": margin if math.isfinite(margin) and low <= margin <= high else None,
        "cut_left": bool(measured and start < low),
        "cut_right": bool(measured and end > high),
    }


def _domain(scale: str, verdicts: Sequence[Verdict]) -> tuple[float, float]:
    """Return the axis: all points, margins and no effect; interval ends as far as they do not dwarf these."""
    core = [0.0]
    ends = []
    for verdict in verdicts:
        core += [v for v in (verdict.effect.point, verdict.margin) if math.isfinite(v)]
        ends += [v for v in (verdict.effect.low, verdict.effect.high) if math.isfinite(v)]
    low, high = min(core), max(core)
    span = (high - low) or max((abs(end) for end in ends), default=1.0) or 1.0
    low = min(low, max(min(ends, default=low), low - 1.5 * span))
    high = max(high, min(max(ends, default=high), high + 1.5 * span))
    pad = 0.06 * ((high - low) or 1.0)
    low, high = low - pad, high + pad
    return (math.exp(max(low, -300)), math.exp(min(high, 300))) if scale == "log-ratio" else (low, high)


def _cut(verdict: Verdict, rows: Sequence[Verdict]) -> bool:
    """Tell whether an interval goes beyond the axis that it shares."""
    low, high = _domain(verdict.effect.scale, [v for v in rows if v.effect.scale == verdict.effect.scale])
    return any(_row(verdict, {}, low, high, 0)[f"cut_{side}"] for side in ("left", "right"))
