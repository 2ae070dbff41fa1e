"""The axis of layers by name, which several kinds of chart share."""

from collections.abc import Sequence
from typing import Any

_ROW, _TALLEST, _LEGIBLE = 17, 460, 13  # pixels: of a row, of a chart, of a row with a name
_LETTERS = 24  # of a layer's name; its end says more than its beginning
_SHORT = "datum.label ? (length(datum.label) > {n} ? '…' + slice(datum.label, -{m}) : datum.label) : 'the whole model'"


def by_name(alt: Any, field: str, sites: Sequence[str]) -> Any:
    """Return the vertical axis of layers, the first on top; every so-many-th has its name where all have no room."""
    every = max(1, -(-len(sites) * _LEGIBLE // _TALLEST))
    label = _SHORT.format(n=_LETTERS, m=_LETTERS - 1)
    axis = alt.Axis(
        title=None,
        labelExpr=label,
        labelLimit=190,
        labelFontSize=11,
        labelOverlap=False,
        values=list(sites[::every]),
    )
    return alt.Y(f"{field}:N", sort=list(sites), axis=axis)


def row_height(rows: int, factor: float = 1) -> float:
    """Return the height of a chart with so many rows."""
    return min(_TALLEST, max(50, _ROW * rows * factor))
