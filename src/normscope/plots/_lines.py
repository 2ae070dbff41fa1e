"""Layers that several kinds of chart draw over a common axis: bands, lines and points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from normscope.plots import _draw
from normscope.plots._frames import Drawn
from normscope.plots._theme import arm_styles

if TYPE_CHECKING:
    import polars as pl

Styles = Mapping[str, tuple[str, list[int]]]


def in_words(
    drawn: Drawn, columns: Sequence[str], words: Mapping[str, str], arms: Sequence[str] | None
) -> tuple["pl.DataFrame", Styles]:
    """Replace names by words, and give each arm its colour and dash.

    Args:
        drawn: The frame, with a column ``arm``.
        columns: Columns in which names are replaced.
        words: Words by name.
        arms: All arms of the study in order.
    """
    import polars as pl

    styles = arm_styles(drawn.frame["arm"].unique().to_list(), arms)
    return drawn.frame.with_columns(pl.col(*columns).replace(words)), {words.get(a, a): s for a, s in styles.items()}


def tips(first: Sequence[Any], numbers: Sequence[tuple[str, str]]) -> list[Any]:
    """Return the fields of a tooltip: some of its own, then numbers as (column, title)."""
    import altair

    return [*first, *(altair.Tooltip(f"{column}:Q", title=title, format=".4~g") for column, title in numbers)]


@dataclass(slots=True)
class Lines:
    """Layers that share a horizontal axis, a vertical scale and the colours of the arms.

    Attributes:
        across: Horizontal axis, such as `_draw.along` makes.
        styles: Colour and dash by arm.
        log: Whether the vertical axis is logarithmic.
        ticks: Labelled values of a logarithmic axis.
        legend: Whether arms are told apart by a legend, in which a click on an arm fades the others; else each arm has
            a panel.
        layers: The layers so far, the lowest first.
    """

    across: Any
    styles: Styles
    log: bool = False
    ticks: Sequence[float] = ()
    legend: bool = True
    layers: list[Any] = field(default_factory=list)

    def band(self, *, opacity: float, clip: bool = False) -> None:
        """Add an area between the columns ``low`` and ``high``."""
        self._add("area", "low", {"clip": clip}, opacity, 0.03, y2="high:Q")

    def line(
        self, column: str = "mid", *, width: float, opacity: float = 1, faded: float = 0.1, clip: bool = False
    ) -> None:
        """Add a line along a column; with a legend, dashes tell the arms apart too."""
        import altair

        dashes = {"strokeDash": _draw.dash(altair, self.styles)} if self.legend else {}
        self._add("line", column, {"strokeWidth": width, "clip": clip}, opacity, faded, **dashes)

    def points(self, tooltip: Sequence[Any], column: str = "mid", *, size: float) -> None:
        """Add a point at every value."""
        self._add("point", column, {"filled": True, "size": size}, 1, 0.1, tooltip=list(tooltip))

    def hover(self, tooltip: Sequence[Any], column: str = "mid") -> None:
        """Add points that show, with their tooltip, only where the pointer is nearest."""
        import altair

        near = altair.selection_point(
            name="near", fields=["x"], nearest=True, on="pointermove", clear="pointerout", empty=False
        )
        shown = altair.when(near).then(altair.value(1)).otherwise(altair.value(0))
        points = altair.Chart().mark_point(filled=True, size=46)
        points = points.encode(**self._channels(column), opacity=shown, tooltip=list(tooltip))
        self.layers.append(points.add_params(near))

    def chart(self, data: Any, panels: Sequence[str] = (), *, independent: bool = False) -> Any:
        """Return the chart of all layers.

        Args:
            data: Rows, from `_draw.rows`.
            panels: Names of the panels in order, as in the column ``panel``; empty for a chart without panels.
            independent: Whether each panel has a vertical scale of its own.
        """
        import altair

        chart = altair.layer(*self.layers, data=data).properties(height=_draw.PANEL_HEIGHT if panels else _draw.HEIGHT)
        if self.legend:
            chart = chart.add_params(_draw.pick(altair))
        return _draw.panels(altair, chart, panels, independent=independent) if panels else chart

    def _add(
        self, mark: str, column: str, options: Mapping[str, Any], opacity: float, faded: float, **channels: Any
    ) -> None:
        import altair

        options = {name: value for name, value in options.items() if value}
        if self.legend:
            channels["opacity"] = _draw.unless_picked(altair, opacity, faded)
        elif opacity < 1:
            options["opacity"] = opacity
        marked = getattr(altair.Chart(), f"mark_{mark}")(**options)
        self.layers.append(marked.encode(**self._channels(column), **channels))

    def _channels(self, column: str) -> dict[str, Any]:
        import altair

        upward = _draw.upward(altair, column, log=self.log, ticks=self.ticks)
        return {"x": self.across, "y": upward, "color": _draw.colour(altair, self.styles, show=self.legend)}
