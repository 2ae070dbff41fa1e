"""The result of a plot: the description of a chart with its words; and a table."""

import copy
import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normscope._errors import UsageError
from normscope.plots._theme import theme
from normscope.records.addresses import save
from normscope.records.json import plain

_WIDTH = 640  # pixels of a saved figure, axes included
_META = "normscope"


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart and its words.

    Attributes:
        slug: Name of the figure within its study; letters, digits, hyphens.
        title: What the figure shows, in a line.
        caption: How to read it: what lines and bands are, what was left out.
        alt: The same for those who do not see it.
        spec: Vega-Lite description without colours of ground and text and without a width: whoever shows it adds both.
    """

    slug: str
    title: str
    caption: str
    alt: str
    spec: dict[str, Any]

    def save(self, path: str | Path, *, mode: str = "light", scale: float = 2.0) -> Path:
        """Write the figure as PNG, SVG or PDF.

        Args:
            path: Target; its suffix chooses the format.
            mode: ``"light"`` or ``"dark"`` ground.
            scale: Pixels per unit of a PNG.

        Returns:
            The path written.

        Raises:
            UsageError: The suffix is none of .png, .svg, .pdf.
            StoreError: The file cannot be written.
        """
        import vl_convert

        target = Path(path)
        spec = fitted(self.spec, _WIDTH)
        config = theme(mode)
        if target.suffix == ".png":
            content = vl_convert.vegalite_to_png(spec, scale=scale, config=config)
        elif target.suffix == ".svg":
            content = vl_convert.vegalite_to_svg(spec, config=config).encode()
        elif target.suffix == ".pdf":
            content = vl_convert.vegalite_to_pdf(spec, config=config)
        else:
            raise UsageError(
                f"a figure is saved as .png, .svg or .pdf, not as {target.suffix or 'a file without suffix'}"
            )
        return save(target, content)


@dataclass(frozen=True, slots=True)
class Table:
    """Numbers in rows.

    Attributes:
        title: What the table holds.
        columns: Heads of the columns.
        rows: One tuple a row, as long as ``columns``; strings, numbers, None.
        caption: How to read it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    caption: str = ""


def finished(
    chart: Any, *, layout: str, subtitle: str, panels: int = 1, least: int = 0, legend: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Turn an Altair chart into a spec that waits for a width and a theme.

    Args:
        chart: Any Altair chart.
        layout: ``"single"``, ``"facet"`` or ``"stack"``: how a width is shared out.
        subtitle: What is plotted upward, with its unit; stands above the chart, where a phone has room for it.
        panels: Number of panels side by side.
        least: Pixels that a panel needs with its labels; 0 for the usual ones.
        legend: Labels of the legend, for its number of columns.
    """
    spec = chart.to_dict()
    spec.pop("config", None)
    told: dict[str, Any] = {"layout": layout, "panels": panels, "legend": list(legend), "subtitle": subtitle}
    spec["usermeta"] = {_META: told | ({"least": least} if least else {})}
    return json.loads(json.dumps(plain(spec, _five_digits), allow_nan=False))


def fitted(spec: dict[str, Any], width: float) -> dict[str, Any]:
    """Give a spec its width. ``report/templates/page.js`` does the same in the browser.

    Args:
        spec: From ``finished``.
        width: Pixels to fill, axes included.

    Returns:
        A copy with widths, columns of panels and of the legend, and the wrapped subtitle.
    """
    spec = copy.deepcopy(spec)
    meta = spec.get("usermeta", {}).get(_META, {})
    if meta.get("subtitle"):
        spec["title"] = {"text": textwrap.wrap(meta["subtitle"], max(20, int(width / 6.6)))}
    small = 11.5 if width < 480 else 12.5
    spec["config"] = {
        "legend": {"columns": _legend_columns(meta.get("legend", ()), width - 60)},
        "style": {
            "row-label": {"limit": max(90, width - 34 - meta.get("words", 0)), "fontSize": small},
            "row-effect": {"fontSize": small},
        },
    }
    if meta.get("layout") == "facet":
        across = max(
            1, min(meta["panels"], int(width / (meta.get("least") or (200 if meta["panels"] == 3 else 250))), 3)
        )
        across = math.ceil(meta["panels"] / math.ceil(meta["panels"] / across))  # 2 + 2, not 3 + 1
        spec["columns"] = across
        spec["spec"]["width"] = max(120, (width - 30) / across - 55)
    elif meta.get("layout") == "stack":
        for part in spec["vconcat"]:
            part["width"] = width - 30
    else:
        spec["width"] = width
        spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    return spec


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """Return how many entries of a legend stand side by side: all of them where they fit on one line."""
    sizes = [len(label) * 6.6 + 44 for label in labels]
    return max(1, len(sizes) if sum(sizes) <= width else int(width / max(sizes)))


def _five_digits(value: float) -> float | None:
    """Round a number of a chart to five significant digits; None for a value that JSON has no number for."""
    return float(f"{value:.5g}") if math.isfinite(value) else None
