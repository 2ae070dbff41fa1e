"""From records to the rows of a chart: choose, drop and count values that cannot be drawn, summarise, thin."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from normscope._errors import UsageError

if TYPE_CHECKING:
    import polars as pl

BANDS = {
    "p10-90": "the band holds the middle 80 % of the seeds",
    "range": "the band goes from the lowest seed to the highest",
    "ci": "the band is the 95 % confidence interval of the mean over seeds",
    "none": "",
}
_MAX_POINTS = 1100  # rows a figure: with about 90 bytes a row its spec stays below 150 kB


@dataclass(slots=True)
class Drawn:
    """The rows of a chart.

    Attributes:
        frame: Columns ``arm``, ``panel``, ``x``, ``mid``, ``low``, ``high``, ``n``.
        notes: Sentences for the caption on values that were left out.
        seeds: Most seeds behind a point.
    """

    frame: "pl.DataFrame"
    notes: list[str] = field(default_factory=list)
    seeds: int = 0


def chosen(frame: "pl.DataFrame", names: Sequence[str], *, log: bool = False) -> tuple["pl.DataFrame", list[str]]:
    """Keep the records of some names that can be drawn.

    A frame without a column ``name`` is wide: then ``names`` are its columns.

    Returns:
        The frame with at least ``arm``, ``seed``, ``site``, ``name`` and a float ``value``; and the notes.
    """
    import polars as pl

    if "name" not in frame.columns:
        wide = [name for name in names if name in frame.columns]
        frame = frame.unpivot(
            on=wide, index=[c for c in frame.columns if c not in wide and c != "value"], variable_name="name"
        )
    defaults: dict[str, Any] = {"arm": "run", "seed": 0, "site": "", "step": 0, "value": None}
    frame = frame.with_columns(pl.lit(v).alias(c) for c, v in defaults.items() if c not in frame.columns)
    kept = frame.filter(pl.col("name").is_in(list(names))).with_columns(
        pl.col("value").cast(pl.Float64), pl.col("arm").cast(pl.String), pl.col("name").cast(pl.String)
    )
    fine = kept.filter(pl.col("value").is_finite().fill_null(False))
    notes = _left_out(kept.height - fine.height, "not finite")
    if log:
        positive = fine.filter(pl.col("value") > 0)
        notes += _left_out(fine.height - positive.height, "not positive, which a logarithmic axis cannot show")
        fine = positive
    if not kept.height:
        notes.append(f"There are no records of {', '.join(names) or 'anything'}.")
    return fine, notes


def summarised(
    frame: "pl.DataFrame",
    *,
    x: str,
    panel: str | None,
    by: str = "arm",
    log: bool = False,
    center: str = "mean",
    band: str = "p10-90",
) -> Drawn:
    """Reduce every (arm, panel, x) to its middle and band over seeds.

    Several records of one seed at one x (sites that are not told apart) are averaged first, so that a seed counts once.
    On a logarithmic axis the mean is the geometric one.
    """
    import polars as pl

    if center not in ("mean", "median") or band not in BANDS:
        raise UsageError(f"a curve has center 'mean' or 'median' and band {', '.join(BANDS)}; not {center!r}, {band!r}")
    frame = frame.with_columns(
        pl.col(by).cast(pl.String).alias("arm"),
        (pl.col(panel).cast(pl.String) if panel else pl.lit("")).alias("panel"),
        pl.col(x).cast(pl.Float64).alias("x"),
        (pl.col("value").log() if log else pl.col("value")).alias("v"),
    )
    seeds = frame.group_by("arm", "panel", "x", "seed").agg(pl.col("v").mean())
    v = pl.col("v")
    mid = v.median() if center == "median" else v.mean()
    if band == "ci":
        from scipy.special import stdtrit

        quantile = pl.col("n").map_elements(lambda n: float(stdtrit(max(n - 1, 1), 0.975)), return_dtype=pl.Float64)
        out = seeds.group_by("arm", "panel", "x").agg(
            mid.alias("mid"), v.std().fill_null(0).alias("sd"), v.len().alias("n")
        )
        half = quantile * pl.col("sd") / pl.col("n").sqrt()
        out = out.with_columns((pl.col("mid") - half).alias("low"), (pl.col("mid") + half).alias("high")).drop("sd")
    else:
        ends = (v.quantile(0.1, "linear"), v.quantile(0.9, "linear")) if band == "p10-90" else (v.min(), v.max())
        out = seeds.group_by("arm", "panel", "x").agg(
            mid.alias("mid"), ends[0].alias("low"), ends[1].alias("high"), v.len().alias("n")
        )
    if log:
        out = out.with_columns(pl.col("mid", "low", "high").exp())
    most = max(out["n"].to_list(), default=0)
    drawn = Drawn(out.sort("arm", "panel", "x"), [], most)
    return thinned(drawn)


def thinned(drawn: Drawn, limit: int = _MAX_POINTS) -> Drawn:
    """Keep evenly spaced x, the first and the last among them, until the figure is small enough."""
    import polars as pl

    frame = drawn.frame
    if frame.height <= limit:
        return drawn
    steps = frame["x"].unique().sort()
    keep = max(2, int(limit * len(steps) / frame.height))
    at = sorted({round(i * (len(steps) - 1) / (keep - 1)) for i in range(keep)})
    drawn.frame = frame.filter(pl.col("x").is_in(steps.gather(at).implode()))
    drawn.notes.append(f"Drawn at {len(at)} of {len(steps)} recorded steps.")
    return drawn


def layered(frame: "pl.DataFrame") -> "pl.DataFrame":
    """Add ``layer``: 1 for the first site of an arm, counted in natural order of the sites' names.

    Arms differ in their module paths (a normalization shifts the indices), so depth is a rank within the arm.
    """
    import polars as pl

    pairs = frame.select("arm", "site").unique().rows()
    ranks = [
        {"arm": arm, "site": site, "layer": rank}
        for arm in {arm for arm, _ in pairs}
        for rank, site in enumerate(sorted((s for a, s in pairs if a == arm), key=natural_key), start=1)
    ]
    schema = {"arm": frame.schema["arm"], "site": frame.schema["site"], "layer": pl.Int64()}
    return frame.join(pl.DataFrame(ranks, schema=schema), on=["arm", "site"], how="left")


def natural_key(site: str) -> list[tuple[int, int | str]]:
    """Sort ``layers.2`` before ``layers.10``."""
    return [(0, int(part)) if part.isdigit() else (1, part) for part in re.split(r"(\d+)", site) if part]


def band_words(drawn: Drawn, center: str, band: str, log: bool) -> str:
    """Return the sentence that defines line and band."""
    if drawn.seeds <= 1:
        return "One seed, hence no band." if drawn.seeds else ""
    line = "median" if center == "median" else ("geometric mean" if log else "mean")
    tail = f"; {BANDS[band]}" if BANDS[band] else ""
    return f"Line: {line} over {drawn.seeds} seeds{tail}."


def joined(*sentences: str) -> str:
    """Join the sentences that are not empty, each ended by a full stop."""
    tidy = [s.strip() for s in sentences if s and s.strip()]
    return " ".join(s if s[-1] in ".!?" else f"{s}." for s in tidy)


def _left_out(count: int, why: str) -> list[str]:
    """Return the note on values that were left out."""
    if not count:
        return []
    return [f"Left out: {count:,} {'value' if count == 1 else 'values'} {why}."]
