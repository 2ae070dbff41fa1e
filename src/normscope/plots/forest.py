"""Forest plot: a row for each verdict, with its interval, its margins and its word."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from normscope.plots._figure import Figure, finished
from normscope.plots._frames import joined
from normscope.plots._theme import OUTCOME_COLOURS, OUTCOME_SHAPES
from normscope.plots._words import effect_words, margin_words, natural, scale_words
from normscope.records import Outcome, Verdict
from normscope.records.answers import capital, differing

_LINE = 15  # pixels of a line of words
_MARKS = 48  # pixels of a row without its label: the interval, and the words under it
_LETTERS = 46  # of a line of a label, which a phone has room for
_LINES = 3  # of a label; the rest is cut
_BEND = 0.25  # an axis in margins is linear up to about here, and logarithmic beyond
_FARTHEST = 100.0  # margins
_TICKS = (1, 3, 10, 30, 100)


class _Axis(NamedTuple):
    """The common axis of all rows.

    Attributes:
        scale: That of the effects; ``"margins"`` where verdicts on several scales share it.
        low: Its lower end, in its own numbers.
        high: Its upper end.
    """

    scale: str
    low: float
    high: float

    def place(self, value: float, verdict: Verdict) -> float:
        """Return where a number of an effect lies."""
        return value / _unit(verdict) if self.scale == "margins" else natural(value, self.scale)


def forest(
    verdicts: Sequence[Verdict],
    *,
    title: str = "Effects with their intervals",
    slug: str = "forest",
    labels: Mapping[str, str] | Sequence[str] | None = None,
    parts: bool = False,
    caption: str = "",
    alt: str = "",
) -> Figure:
    """Draw verdicts with intervals and margins on one axis, in the order given.

    Where all effects are on one scale, the axis has their natural units. Where they are not, the axis is in margins:
    the interval of a claim that holds lies wholly beyond 1, that of the opposite beyond -1, that of no effect that
    matters between the two. Identities have an error and no interval over seeds; they are left out.

    Args:
        verdicts: In the order wanted.
        title: What the figure shows, in a line.
        slug: Name of the figure.
        labels: Words for the rows: one for each, or by study slug or endpoint; else the claim of a primary verdict, and
            of a part the conditions in which it differs.
        parts: Whether the parts of each verdict follow it.
        caption: Sentences before those on how to read it.
        alt: Description for those who do not see it.

    Returns:
        The figure. Intervals that go on beyond the axis, or have no bound, end in an arrow.
    """
    import altair

    from normscope.plots._draw import nothing

    everything = [(v, verdict) for verdict in verdicts for v in ((verdict, *verdict.parts) if parts else (verdict,))]
    named = [(v, _label(v, head, labels or {}, index)) for index, (v, head) in enumerate(everything)]
    drawn = [(v, label) for v, label in named if v.effect.scale != "error"]
    left_out = len(named) - len(drawn)
    apart = f"{left_out} {'identity is' if left_out == 1 else 'identities are'} not drawn" if left_out else ""
    if not drawn:
        return nothing(slug, title, joined(caption, apart or "There are no verdicts."), alt)
    axis = _axis([v for v, _ in drawn])
    lines = max(_wrapped(label).count("\n") + 1 for _, label in drawn)
    rows = [_row(v, _wrapped(label, lines), axis, index) for index, (v, label) in enumerate(drawn)]
    chart = _chart(altair, rows, axis, lines * _LINE + _MARKS)
    told = joined(
        caption,
        "Mark and bar: effect and interval, positive in the direction of the claim; shape and colour: the word",
        "Upright strokes: thick, the smallest effect that matters, either way; thin, no effect",
        "The axis is in units of each claim's own margin; the numbers under the bars are in natural units"
        if axis.scale == "margins"
        else "",
        "An arrow means that the interval goes on" if any(row["cut_left"] or row["cut_right"] for row in rows) else "",
        apart,
    )
    said = "; ".join(f"{label}: {v.amount or effect_words(v.effect)}, {v.outcome.value}" for v, label in drawn)
    return Figure(slug, title, told, alt or f"{title}. {said}.", finished(chart, layout="single", subtitle=""))


def _label(verdict: Verdict, head: Verdict, labels: Mapping[str, str] | Sequence[str], index: int) -> str:
    """Return the words that stand over a row."""
    if not isinstance(labels, Mapping):
        return labels[index]
    given = labels.get(verdict.endpoint) or (labels.get(verdict.study) if verdict is head else "")
    if given:
        return given
    own = verdict.claim or verdict.study
    return own if verdict is head or verdict.claim != head.claim else differing(head, verdict)


def _wrapped(label: str, count: int = 1) -> str:
    """Break a label into lines, at least so many, the first of them empty; cut what is too long."""
    lines = textwrap.wrap(label, _LETTERS)
    empty = [""] * (count - len(lines))
    return "\n".join([*empty, *lines[:_LINES]]) + ("…" if len(lines) > _LINES else "")


def _chart(alt: Any, rows: list[dict[str, Any]], axis: _Axis, height: int) -> Any:
    """Draw the rows: words, strokes, bars, arrows and marks, one above the other."""
    across = _across(alt, axis)
    up = alt.Y("row:O", axis=None, sort=None, scale=alt.Scale(paddingInner=0, paddingOuter=0))
    domain = [outcome.value for outcome in Outcome]
    colours, shapes = (
        channel("outcome:N", legend=None, scale=alt.Scale(domain=domain, range=[look[outcome] for outcome in Outcome]))
        for channel, look in ((alt.Color, OUTCOME_COLOURS), (alt.Shape, OUTCOME_SHAPES))
    )
    tips = [alt.Tooltip(f"{f}:N", title=f) for f in ("claim", "endpoint", "word", "effect", "margin", "seeds")]
    base = alt.Chart()
    below = height / 2 - 26  # of the middle of a row, where its interval lies

    def mark(kind: str, where: str = "", **options: Any) -> Any:
        chosen = base.transform_filter(where) if where else base
        return getattr(chosen, f"mark_{kind}")(yOffset=below, **options)

    text = {"align": "left", "baseline": "top"}
    label = base.mark_text(
        dy=10 - height / 2, lineBreak="\n", lineHeight=_LINE, fontWeight=600, style="row-label", **text
    )
    words = base.mark_text(dy=height / 2 - 15, style="row-effect", **text)
    layers = [
        mark("rule", opacity=0.18).encode(y=up, x=alt.value(0), x2=alt.value("width")),
        label.encode(y=up, x=alt.value(0), text="label:N"),
        words.encode(y=up, x=alt.value(0), text="words:N"),
    ]
    zero = 1.0 if axis.scale == "log-ratio" else 0.0
    if axis.low <= zero <= axis.high:
        none = mark("tick", orient="vertical", size=16, thickness=1, opacity=0.55)
        layers.append(none.encode(y=up, x=alt.X(datum=zero)))
    for end in ("margin_below", "margin_above"):
        stroke = mark("tick", f"isValid(datum.{end})", orient="vertical", size=18, thickness=2)
        layers.append(stroke.encode(y=up, x=alt.X(f"{end}:Q"), tooltip=tips))
    bars = mark("rule", "isValid(datum.from)", strokeWidth=2.5)
    layers.append(bars.encode(y=up, x=alt.X("from:Q"), x2="to:Q", color=colours))
    for end, sign in (("from", "left"), ("to", "right")):
        arrow = mark("point", f"datum.cut_{sign}", filled=True, shape=f"triangle-{sign}", size=70)
        layers.append(arrow.encode(y=up, x=alt.X(f"{end}:Q"), color=colours))
    dots = mark("point", "isValid(datum.mid)", filled=True, size=100, opacity=1)
    layers.append(dots.encode(y=up, x=across, color=colours, shape=shapes, tooltip=tips))
    return alt.layer(*layers, data=alt.Data(values=rows)).properties(height=height * len(rows))


def _across(alt: Any, axis: _Axis) -> Any:
    """Return the horizontal channel with its labels."""
    from normscope.plots._draw import round_values

    low, high = axis.low, axis.high
    options: dict[str, Any] = {"format": "~g", "tickCount": 6}
    if axis.scale == "margins":
        kind: dict[str, Any] = {"type": "symlog", "constant": _BEND}
        title = "Effect in units of its margin (0 = none, 1 = the smallest that matters)"
        options["values"] = [at for at in (*(-t for t in reversed(_TICKS)), 0, *_TICKS) if low <= at <= high]
    else:
        kind = {"type": "log" if axis.scale == "log-ratio" else "linear"}
        title = f"Effect as a {scale_words(axis.scale)}" if axis.scale != "value" else "Effect"
        if axis.scale == "log-ratio":
            options["values"] = [at for at in round_values(low, high) if low <= at <= high]
    return alt.X(
        "mid:Q", scale=alt.Scale(domain=[low, high], nice=False, **kind), axis=alt.Axis(title=title, **options)
    )


def _row(verdict: Verdict, label: str, axis: _Axis, index: int) -> dict[str, Any]:
    """Return a verdict's row, in the numbers of the axis."""
    effect, low, high = verdict.effect, axis.low, axis.high
    point, start, end = (axis.place(v, verdict) for v in (effect.point, effect.low, effect.high))
    judged = verdict.outcome is not Outcome.NOT_MEASURABLE  # else its number is not about the claim
    measured = judged and math.isfinite(effect.point) and math.isfinite(point)
    below, above = (axis.place(v, verdict) for v in (-verdict.margin, verdict.margin))
    words = verdict.amount or effect_words(effect, margin=verdict.margin)
    return {
        "row": index,
        "label": label,
        "words": f"{capital(verdict.outcome.value)}{f': {words}' if judged else ''}",
        "outcome": verdict.outcome.value,
        "word": verdict.outcome.value,
        "claim": verdict.claim,
        "endpoint": verdict.endpoint,
        "effect": f"{words} at {effect.level * 100:.3g} %",
        "margin": margin_words(verdict.margin, effect.scale, effect.unit),
        "seeds": effect.n,
        "mid": min(max(point, low), high) if measured else None,
        "from": min(max(start, low), high) if measured and not math.isnan(start) else None,
        "to": min(max(end, low), high) if measured and not math.isnan(end) else None,
        "margin_below": below if math.isfinite(below) and low <= below <= high else None,
        "margin_above": above if math.isfinite(above) and low <= above <= high else None,
        "cut_left": bool(measured and start < low),
        "cut_right": bool(measured and end > high),
    }


def _unit(verdict: Verdict) -> float:
    """Return the unit of an axis in margins: the margin, or without a margin the farther end of the interval."""
    if verdict.margin and math.isfinite(verdict.margin):
        return abs(verdict.margin)
    effect = verdict.effect
    return max((abs(v) for v in (effect.point, effect.low, effect.high) if math.isfinite(v)), default=1.0) or 1.0


def _axis(verdicts: Sequence[Verdict]) -> _Axis:
    """Return the axis: all points, margins and no effect; interval ends as far as they do not dwarf these."""
    scales = {verdict.effect.scale for verdict in verdicts}
    if len(scales) > 1:
        points = [abs(v.effect.point) / _unit(v) for v in verdicts if math.isfinite(v.effect.point)]
        far = min(_FARTHEST, max(3.0, 1.2 * max(points, default=1.0)))
        return _Axis("margins", -far, far)
    (scale,) = scales
    core = [0.0]
    ends = []
    for verdict in verdicts:
        core += [v for v in (verdict.effect.point, verdict.margin, -verdict.margin) if math.isfinite(v)]
        ends += [v for v in (verdict.effect.low, verdict.effect.high) if math.isfinite(v)]
    low, high = min(core), max(core)
    span = (high - low) or max((abs(end) for end in ends), default=1.0) or 1.0
    low = min(low, max(min(ends, default=low), low - 1.5 * span))
    high = max(high, min(max(ends, default=high), high + 1.5 * span))
    pad = 0.06 * ((high - low) or 1.0)
    low, high = low - pad, high + pad
    if scale == "log-ratio":
        low, high = math.exp(max(low, -300)), math.exp(min(high, 300))
    return _Axis(scale, low, high)
