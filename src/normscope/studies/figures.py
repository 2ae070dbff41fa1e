"""Figures and tables that studies get by default, made of contrasts, quantities and records."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from normscope.plots import Figure, Table, curves, readable
from normscope.records import Outcome
from normscope.records.answers import capital
from normscope.studies.contrast import Contrast, Reading
from normscope.studies.evidence import Evidence, Floats, typical
from normscope.studies.quantity import Best, Quantity
from normscope.studies.wording import ROW, Wording


def contrast_figure(contrast: Contrast, evidence: Evidence, words: Wording, **changes: Any) -> Figure:
    """Draw the records of a contrast's quantity over steps, each side under its own condition.

    Args:
        contrast: What to draw; its quantity has a ``record``.
        evidence: The records.
        words: Of the study.
        changes: Arguments of ``plots.curves`` in place of the defaults.
    """
    (probe, name), reading = contrast.quantity.record, contrast.read(evidence)
    sides = [sample.where for sample in (reading.first, reading.second) if sample.where]
    frames = [evidence.select(probe=probe, name=name, **where) for where in sides]
    values = [str(value) for value in contrast.at.values() if not isinstance(value, Best)]
    options: dict[str, Any] = {
        "slug": slug_of(name, *values),
        "title": _title(name, words.at(contrast.at), changes),
        "arms": list(words.arms),
        "labels": words.arms,
        "log": contrast.quantity.logs or name == "loss",
        "reference": contrast.quantity.reference,
        "caption": words.reason(reading),
    }
    return curves(pl.concat(frames), y=name, **options | changes)


def record_figure(
    evidence: Evidence,
    name: str | Sequence[str],
    words: Wording,
    *,
    probe: str = "training",
    at: Mapping[str, Any],
    **changes: Any,
) -> Figure:
    """Draw recorded quantities over steps, a line an arm.

    Args:
        evidence: The records.
        name: Name of the records, or several names.
        words: Of the study.
        probe: Their probe.
        at: Which of them: ``arm`` (several, if not all), ``site``, ``before``, and values of the point.
        changes: Arguments of ``plots.curves`` in place of the defaults.
    """
    names = [name] if isinstance(name, str) else list(name)
    point = {key: value for key, value in at.items() if key not in ("arm", "site", "before")}
    options: dict[str, Any] = {
        "slug": slug_of(*names, *(str(value) for value in point.values())),
        "title": _title(names[0], words.at(point), changes),
        "arms": list(words.arms),
        "labels": words.arms,
        "log": "loss" in names[0],
    }
    if names == ["loss"] and "caption" not in changes:
        shown = at.get("arm", list(words.arms))
        present = {arm: words.side(arm) for arm in ([shown] if isinstance(shown, str) else shown)}
        options["caption"] = evidence.final_losses(present, **{k: v for k, v in at.items() if k != "arm"})
    return curves(evidence.select(probe=probe, **at), y=name, **options | changes)


def _title(name: str, at: str, changes: Mapping[str, Any]) -> str:
    """Return the title of a figure: what is drawn without its unit, the condition, and along what."""
    drawn = re.sub(r" \([^)]*\)$", "", capital(readable(name)))
    along = f"by {changes['x_title'].lower()}" if "x_title" in changes else ""
    return ", ".join(part for part in (drawn, at, along) if part)


def contrasts_table(rows: Sequence[tuple[Contrast, Reading, Outcome]], words: Wording, seeds: int) -> Table:
    """Tabulate contrasts, a row each.

    Args:
        rows: Contrasts with their numbers and words.
        words: Of the study.
        seeds: How many there are.
    """
    listed = tuple(words.row(contrast, reading, outcome) for contrast, reading, outcome in rows)
    return Table("Contrasts", ROW, listed, f"Means over {seeds} seeds, of logarithms geometric means.")


def grid_table(
    quantities: Sequence[Quantity],
    evidence: Evidence,
    words: Wording,
    *,
    rows: Mapping[str, Sequence[Any]],
    columns: Mapping[str, Sequence[Any]],
    at: Mapping[str, Any],
    title: str = "",
    caption: str = "",
    heads: Mapping[str, str] | None = None,
    labels: Mapping[Any, str] | None = None,
) -> Table:
    """Tabulate quantities over the grid: a row for every combination of ``rows``, a column for every other.

    Args:
        quantities: What stands in the cells.
        evidence: The records.
        words: Of the study.
        rows: Names of the point's values (or ``"arm"``) and the values; each name is a first column.
        columns: As ``rows``, across, and then each quantity has a row of its own; empty for a column a quantity.
        at: The condition of the whole table.
        title: What the table holds; the quantity if left out.
        caption: How to read it.
        heads: Heads of the first columns, by the names in ``rows``.
        labels: Words for values in the first columns; arms have theirs.
    """
    names = {**words.arms, **(labels or {})}
    given = {"arm": "Arm", "net": "Network", "lr": "Learning rate", "depth": "Hidden layers", **(heads or {})}
    first = [given.get(key, capital(key)) for key in rows]
    if columns:
        across = [dict(zip(columns, values, strict=True)) for values in itertools.product(*columns.values())]
        top = [
            capital(", ".join(word for word in (words.side(point.get("arm")), words.at(point)) if word))
            for point in across
        ]
        several = ["Quantity"] if len(quantities) > 1 else []
        heading, groups = [*first, *several, *top], [([quantity], several) for quantity in quantities]
    else:
        across, heading = [{}], [*first, *(capital(quantity.words) for quantity in quantities)]
        groups = [(list(quantities), [])]
    lines = []
    for values in itertools.product(*rows.values()):
        where = {**at, **dict(zip(rows, values, strict=True))}
        for group, named in groups:
            cells = [quantity.text(evidence, **where, **point) for point in across for quantity in group]
            shown = [names.get(value, value) for value in values]
            lines.append((*shown, *([capital(group[0].words)] if named else []), *cells))
    if not caption and any(quantity.censored for quantity in quantities):
        caption = (
            f"Kaplan-Meier means restricted to {evidence.settings['steps']} steps, with their "
            f"{evidence.level:.0%} intervals; in brackets, how many runs never get there."
        )
    return Table(title or capital(quantities[0].words), tuple(heading), tuple(lines), caption)


def theory_table(rows: Iterable[tuple[str, Floats, float | Floats]], caption: str = "") -> Table:
    """Tabulate what was measured against theory, with their ratio; means over seeds.

    Args:
        rows: The quantity in words, what was measured of it (n,) per seed, and the theory: a number, or one per seed.
        caption: How to read it.
    """
    lines = []
    for words, measured, theory in rows:
        mean, expected = float(np.nanmean(measured)), float(np.nanmean(theory))
        lines.append((words, f"{mean:.4f}", f"{expected:.4f}", f"{mean / expected:.4f}"))
    return Table("Against theory", ("Quantity", "Measured", "Theory", "Ratio"), tuple(lines), caption)


def slug_of(*parts: str) -> str:
    """Return the name of a figure made of words: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def by_rate_figure(evidence: Evidence, arms: Mapping[str, str], name: str = "test_accuracy", **where: Any) -> Figure:
    """Draw a final accuracy over the learning rate."""
    rates = sorted(evidence.select(arm=list(arms), **where)["lr"].unique().to_list())
    said = "; ".join(
        f"{words}: " + ", ".join(f"{typical(evidence.accuracy(arm, name, lr=lr, **where))}" for lr in rates)
        for arm, words in arms.items()
    )
    return curves(
        evidence.select(probe="training", name=name, arm=list(arms), **where),
        y=name,
        x="lr",
        slug="by-rate",
        title="Accuracy at the end, by learning rate",
        x_title="Learning rate",
        y_title=name.replace("_", " ").capitalize(),
        log_x=True,
        arms=list(arms),
        labels=dict(arms),
        caption=f"At {', '.join(f'{lr:g}' for lr in rates)}: {said}; 0 where it diverged.",
    )


def ends_table(evidence: Evidence, arms: Mapping[str, str], **where: Any) -> Table:
    """Tabulate how some arms end."""
    rows = tuple(
        (
            capital(words),
            typical(evidence.final("loss", arm=arm, **where)),
            typical(evidence.final("accuracy", arm=arm, **where)),
            typical(evidence.accuracy(arm, **where)),
            int(np.nansum(evidence.last("diverged", arm=arm, **where))),
        )
        for arm, words in arms.items()
    )
    columns = ("Arm", "Training loss", "Training accuracy", "Test accuracy", "Runs that diverged")
    return Table("How the arms end", columns, rows, f"Means over {len(evidence.seeds)} seeds; training: last 20 steps.")
