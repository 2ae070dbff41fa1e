"""Colours and type of the charts, for light and for dark grounds; and which colour an arm has."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from normscope.records import Outcome

# Okabe and Ito's colours for all kinds of colour vision, the light ones deepened: every one of them keeps a contrast
# of 3:1 to the light AND to the dark ground, so that a chart's description need not know on which it will stand.
PALETTE = ("#7a7f89", "#0a74b8", "#d55e00", "#00926b", "#b8609a", "#a87900", "#5b6ee1", "#a0583c")
DASHES = ([1, 0], [1, 0], [7, 3], [2, 2], [8, 3, 2, 3], [4, 4], [1, 3], [12, 3])
OUTCOME_COLOURS = {
    Outcome.HOLDS: "#00875f",
    Outcome.OPPOSITE: "#d04a02",
    Outcome.NO_EFFECT: "#0a74b8",
    Outcome.UNCLEAR: "#a87900",
    Outcome.NOT_MEASURABLE: "#7a7f89",
    Outcome.EXACT: "#00875f",
    Outcome.FALSE: "#d04a02",
}
OUTCOME_SHAPES = {
    Outcome.HOLDS: "circle",
    Outcome.OPPOSITE: "square",
    Outcome.NO_EFFECT: "triangle-up",
    Outcome.UNCLEAR: "diamond",
    Outcome.NOT_MEASURABLE: "cross",
    Outcome.EXACT: "circle",
    Outcome.FALSE: "square",
}

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
_GROUNDS = {
    "light": {"ground": "#ffffff", "text": "#1c2330", "soft": "#4d5666", "line": "#c5cbd5", "grid": "#e8ebf0"},
    "dark": {"ground": "#171b22", "text": "#e8ebf1", "soft": "#aab3c2", "line": "#465062", "grid": "#272e39"},
}
_PLAIN = {"none", "standard", "plain", "nonorm", "nobn", "off", "without", "unnormalised", "unnormalized"}
_BATCH = {"bn", "batch", "batchnorm", "batchnormalization", "batchnormalisation", "own"}  # "own": a network as it is
_NOISY = {"noisybn", "noisybatch", "noisybatchnorm", "noisy", "bnnoise", "bnnoisy"}


def theme(mode: str = "light") -> dict[str, Any]:
    """Return the Vega-Lite configuration of a ground.

    Args:
        mode: ``"light"`` or ``"dark"``.

    Returns:
        A ``config`` mapping: type, axes, legends and ground colour; the figures themselves carry none of it.
    """
    ground = _GROUNDS[mode]
    words = {"labelFont": FONT, "titleFont": FONT, "labelFontSize": 12, "titleFontSize": 12}
    return {
        "background": ground["ground"],
        "font": FONT,
        "padding": {"left": 4, "right": 12, "top": 4, "bottom": 4},
        "view": {"stroke": None},
        "title": {"color": ground["soft"], "fontSize": 12.5, "fontWeight": 500, "anchor": "start", "offset": 10},
        "axis": words
        | {
            "labelColor": ground["soft"],
            "titleColor": ground["soft"],
            "titleFontWeight": 500,
            "titlePadding": 8,
            "domainColor": ground["line"],
            "tickColor": ground["line"],
            "gridColor": ground["grid"],
            "labelOverlap": "greedy",
            "tickSize": 4,
        },
        "axisX": {"grid": False},
        "axisY": {"domain": False, "ticks": False, "labelPadding": 6},
        "legend": words
        | {
            "labelColor": ground["text"],
            "titleColor": ground["soft"],
            "orient": "top",
            "direction": "horizontal",
            "title": None,
            "symbolStrokeWidth": 2.5,
            "symbolSize": 160,
            "columnPadding": 16,
            "rowPadding": 4,
            "labelLimit": 260,
            "offset": 10,
        },
        "header": {"labelColor": ground["text"], "labelFont": FONT, "labelFontSize": 12.5, "labelFontWeight": 600}
        | {"labelAnchor": "start", "title": None, "labelPadding": 6},
        "text": {"color": ground["text"], "font": FONT, "fontSize": 12},
        "rule": {"color": ground["soft"]},
        "tick": {"color": ground["text"]},
    }


def order_arms(present: Iterable[str], arms: Sequence[str] | None = None) -> list[str]:
    """Return the arms in their lasting order.

    Args:
        present: Arms found in the data.
        arms: All arms of the study in the order wanted; those not in the data are left out of the result.

    Returns:
        ``arms`` first, then the rest: no normalization, batch norm, noisy batch norm, others by name.
    """
    found = set(present)
    first = [arm for arm in dict.fromkeys(arms or ()) if arm in found]
    return first + sorted(found - set(first), key=lambda arm: (_role(arm) if _role(arm) is not None else 9, arm))


def arm_styles(present: Iterable[str], arms: Sequence[str] | None = None) -> dict[str, tuple[str, list[int]]]:
    """Give every arm its colour and dash.

    No normalization is always grey, batch norm (or a network as it is) blue and noisy batch norm vermilion. The others
    take what is left in the order of ``arms``: pass the same ``arms`` to all figures of a page and each arm keeps its
    colour on all of them, also where some are absent.

    Returns:
        (colour, dash) by arm, in the order of ``order_arms``.
    """
    shown = order_arms(present, arms)
    everyone = list(dict.fromkeys([*(arms or ()), *shown]))
    taken: dict[str, int] = {}
    for arm in everyone:
        role = _role(arm)
        if role is not None and role not in taken.values():
            taken[arm] = role
    free = [slot for slot in range(len(PALETTE)) if slot not in taken.values() and slot > 2]
    free += [slot for slot in range(3) if slot not in taken.values()]
    rest = [arm for arm in everyone if arm not in taken]
    taken |= {arm: free[i % len(free)] if free else i % len(PALETTE) for i, arm in enumerate(rest)}
    return {arm: (PALETTE[taken[arm]], list(DASHES[taken[arm]])) for arm in shown}


def _role(arm: str) -> int | None:
    """Return the palette slot that an arm's name reserves."""
    plain = re.sub("[^a-z0-9]", "", arm.lower())
    for slot, names in enumerate((_PLAIN, _BATCH, _NOISY)):
        if plain in names:
            return slot
    return None
