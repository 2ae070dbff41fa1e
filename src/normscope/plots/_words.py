"""Effects, margins and outcomes in words, for the page, the plots and the terminal alike."""

import math
from dataclasses import replace

from normscope.records import Estimate, Outcome
from normscope.records.numbers import UNBOUNDED as UNBOUNDED, UNMEASURED as UNMEASURED, decimals_for, number as number

_ICONS = {
    Outcome.HOLDS: "✓",
    Outcome.OPPOSITE: "⇄",
    Outcome.NO_EFFECT: "≈",
    Outcome.UNCLEAR: "?",
    Outcome.NOT_MEASURABLE: "–",
    Outcome.EXACT: "≡",
    Outcome.FALSE: "✕",
}
_HUNDREDTHS = ("points", "%")  # units that are hundredths of the number


def outcome_icon(outcome: Outcome) -> str:
    """Return the one-character sign of an outcome, for those who do not see its colour."""
    return _ICONS[outcome]


def natural(value: float, scale: str) -> float:
    """Bring a number of an estimate to the scale people read: a log-ratio becomes a ratio, anything else stays."""
    if scale != "log-ratio":
        return value
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def effect_words(
    estimate: Estimate,
    *,
    margin: float | None = None,
    style: str = "symbol",
    comparative: tuple[str, str] | None = None,
) -> str:
    """Write an estimate with its interval, in natural units.

    The interval shows as many digits as its width deserves, the point one more. Where rounding would lay an end of the
    interval upon the margin that it does not touch, digits are added until it shows on which side it lies.

    Args:
        estimate: On any scale; a log-ratio is written as the ratio.
        margin: Smallest effect of interest on the estimate's scale, if the text stands beside it.
        style: ``"symbol"`` for ``×1.83 (1.5 to 2.2)``, ``"plain"`` for ``1.83 times (1.5 to 2.2)``.
        comparative: Words for an effect above and below nothing, such as ``("fewer", "more")``: the effect is then
            written as a size with the word that fits it.

    Returns:
        ``×1.83 (1.5 to 2.2)`` for a log-ratio, ``+1.2 points (0.5 to 1.9)`` for a difference in points, ``largest error
        9e−16`` for an identity, ``1.83 times fewer (1.5 to 2.2)`` with a comparative.
    """
    factor = 100 if estimate.unit in _HUNDREDTHS else 1
    if estimate.scale == "error":
        said = f"largest error {number(factor * estimate.point)}{_unit(estimate)}"
        return said if estimate.point >= 0 else UNMEASURED
    if not math.isfinite(estimate.point):
        return UNMEASURED
    if comparative is not None:
        style = "plain"
        word = comparative[estimate.point < 0]
        if estimate.point < 0:
            turned = (-estimate.point, -estimate.high, -estimate.low)
            estimate = replace(estimate, point=turned[0], low=turned[1], high=turned[2])
            margin = None if margin is None else -margin
    point, low, high = (factor * natural(v, estimate.scale) for v in (estimate.point, estimate.low, estimate.high))
    base = _decimals(point, low, high)
    decimals = _clear_of(base, (low, high), None if margin is None else factor * natural(margin, estimate.scale))
    middle = number(point) if base is None or decimals is None else _point(point, decimals, max(base + 1, decimals))
    ends_seen = (abs(end) for end in (low, high) if math.isfinite(end))
    if estimate.scale != "log-ratio" and abs(point) < 1e-3 * max(ends_seen, default=0.0):
        middle = "0"  # rounding, beside such an interval; of a ratio no number is 0
    if estimate.scale == "difference" and point > 0 and middle != UNBOUNDED and comparative is None:
        middle = f"+{middle}"
    if estimate.scale == "log-ratio" and middle != UNBOUNDED:
        middle = f"{middle} times" if style == "plain" else f"×{middle}"
    middle += _unit(estimate)
    if comparative is not None:
        middle += f" {word}"
    unbounded = [not math.isfinite(low) or (estimate.scale == "log-ratio" and low == 0), not math.isfinite(high)]
    if all(unbounded):
        return f"{middle} ({UNBOUNDED})"
    ends = [UNBOUNDED if off else number(end, decimals) for end, off in zip((low, high), unbounded, strict=True)]
    return f"{middle} ({ends[0]} to {ends[1]})"


def _unit(estimate: Estimate) -> str:
    """Return the unit with the space before it."""
    return f" {estimate.unit}" if estimate.unit else ""


def margin_words(margin: float, scale: str, unit: str = "") -> str:
    """Write a margin: ``×1.5`` for a log-ratio, ``±0.05`` for a difference, ``below 1e−12`` for an identity.

    Args:
        margin: On the scale of the effect.
        scale: That of the estimate.
        unit: That of the estimate.
    """
    text = number((100 if unit in _HUNDREDTHS else 1) * natural(margin, scale))
    text = f"{text} {unit}" if unit else text
    if scale == "error":
        return f"below {text}"
    if scale == "log-ratio":
        return f"×{text}"
    return f"±{text}" if scale == "difference" and margin > 0 else text


def scale_words(scale: str) -> str:
    """Return what the axis of a scale measures."""
    return {
        "log-ratio": "ratio (1 = no difference)",
        "difference": "difference (0 = none)",
        "value": "value",
    }.get(scale, scale[:24])


def _point(value: float, decimals: int, more: int) -> str:
    """Write a point with up to ``more`` digits, without closing zeros beyond ``decimals``."""
    text = number(value, more)
    while more > decimals and text.endswith("0"):
        more -= 1
        text = number(value, more)
    return text


def _decimals(point: float, low: float, high: float) -> int | None:
    """Return the decimals for the ends of an interval, or None where there is no width to go by."""
    ends = [end for end in (low, high) if math.isfinite(end)]
    width = max((abs(end - point) for end in ends), default=0.0) if math.isfinite(point) else 0.0
    if width <= 0:
        return None
    by_width = decimals_for(width, 1)
    # Two digits of the point, but not where the interval is far wider than the point is large.
    return min(6, by_width + 1, max(by_width, decimals_for(abs(point), 2))) if point else min(6, by_width)


def _clear_of(decimals: int | None, ends: tuple[float, float], margin: float | None) -> int | None:
    """Add decimals until no end of an interval reads like the margin that it does not touch."""
    if decimals is None or margin is None or not math.isfinite(margin):
        return decimals
    near = [end for end in ends if math.isfinite(end) and end != margin]
    while decimals < 6 and any(number(end, decimals) == number(margin, decimals) for end in near):
        decimals += 1
    return decimals
