"""The axis of layers by name, which several kinds of chart share."""

import json
from collections.abc import Sequence
from typing import Any

_ROW, _TALLEST, _LEGIBLE = 17, 460, 13  # pixels: of a row, of a chart, of a row with a name
_LETTERS = 24  # of a layer's name; its end says more than its beginning
_FEWEST = 3  # letters of a part of a name
_GAP = "…"
_ROUNDS = 4  # of telling names apart that became the same when others were told apart


def by_name(alt: Any, field: str, sites: Sequence[str]) -> Any:
    """Return the vertical axis of layers, the first on top; every so-many-th has its name where all have no room."""
    every = max(1, -(-len(sites) * _LEGIBLE // _TALLEST))
    named = list(sites[::every])
    short = short_names(sites)
    labels = {site: short[site] for site in named if short[site] != site}
    axis = alt.Axis(
        title=None,
        labelExpr=f"({json.dumps(labels)})[datum.label] || datum.label",
        labelLimit=190,
        labelFontSize=11,
        labelOverlap=False,
        values=named,
    )
    return alt.Y(f"{field}:N", sort=list(sites), axis=axis)


def row_height(rows: int, factor: float = 1) -> float:
    """Return the height of a chart with so many rows."""
    return min(_TALLEST, max(50, _ROW * rows * factor))


def short_names(sites: Sequence[str], letters: int = _LETTERS) -> dict[str, str]:
    """Return a label for each layer that no other layer has.

    A long name loses its beginning; where labels would be the same, the parts that tell the names apart are kept.

    Args:
        sites: Qualified names; the empty one is the whole model.
        letters: Longest label.
    """
    labels = {site: _end(site, letters) if site else "the whole model" for site in sites}
    peers: dict[str, set[str]] = {site: {site} for site in sites}  # with which a name was mixed up so far
    for _ in range(_ROUNDS):
        for group in _same(labels):
            mixed = set().union(*(peers[site] for site in group))
            peers |= dict.fromkeys(mixed, mixed)
            split = [other.split(".") for other in mixed]
            labels |= {site: _telling(site.split("."), split, letters) for site in mixed}
    for group in _same(labels):
        for number, site in enumerate(group[1:], 2):  # no room for what tells them apart
            mark = f" ({number})"
            labels[site] = labels[site][: letters - len(mark)] + mark
    return labels


def _end(site: str, letters: int) -> str:
    """Return a name, or of a long name the parts at its end: a part that is cut is hard to tell from another."""
    if len(site) <= letters:
        return site
    whole = site[1 - letters :]
    if site[-letters] != ".":  # the first part of the rest is cut
        whole = whole.partition(".")[2] or whole
    return _GAP + whole


def _same(labels: dict[str, str]) -> list[list[str]]:
    """Return the names that have one label, where there are several."""
    groups: dict[str, list[str]] = {}
    for site, label in labels.items():
        groups.setdefault(label, []).append(site)
    return [group for group in groups.values() if len(group) > 1]


def _telling(parts: list[str], group: list[list[str]], letters: int) -> str:
    """Keep of a name the parts in which the names of a group differ, and of its end what there is room for."""
    from_start = {i for i, part in enumerate(parts) if any(i >= len(other) or other[i] != part for other in group)}
    last = len(parts) - 1
    from_end = {
        i
        for i, part in enumerate(parts)
        if any(last - i >= len(other) or other[i - last - 1] != part for other in group)
    }
    kept = min(from_start, from_end, key=len) or {last}
    for length in (letters, 12, 8, 6, 5, 4, 3, 2, 1):
        clipped = [part if i not in kept or len(part) <= length else part[:length] for i, part in enumerate(parts)]
        if len(_joined(clipped, kept)) <= letters:
            break
    for index in range(last, -1, -1):  # the end, as far as there is room
        if len(_joined(clipped, kept | {index})) > letters:
            break
        kept = kept | {index}
    text = _joined(clipped, kept)
    room = letters - len(text) - 1
    return text[:letters] if last in kept or room < _FEWEST else f"{text}{_GAP}{parts[last][-room:]}"


def _joined(parts: Sequence[str], kept: set[int]) -> str:
    """Write some parts of a name, with an ellipsis for what lies between them."""
    text, before = "", -1
    for index in sorted(kept):
        text += (_GAP if index > before + 1 else "." if index else "") + parts[index]
        before = index
    return text
