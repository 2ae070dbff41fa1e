"""What the pages of all measurements share: tables, and the conditions of a measurement."""

from collections.abc import Mapping, Sequence
from typing import Any

#: Columns, and rows as long as these.
Table = tuple[Sequence[str], Sequence[tuple[str, ...]]]


def markdown_table(columns: Sequence[str], found: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *found]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def with_quartiles(ratio: Mapping[str, float]) -> str:
    """Return a median with its quartiles, as ``2.00 (1.90 to 2.10)``."""
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def machine(result: Mapping[str, Any], *more: str) -> str:
    """Return a sentence: on what machine, with what torch and under what load the numbers were made.

    Args:
        result: What was measured, with ``provenance`` and ``load``.
        more: What else is told between torch and the date.
    """
    made = result["provenance"]
    cores = made["cores"]["usable"]
    facts = (made["cpu"], f"{cores} {'core' if cores == 1 else 'cores'}", f"torch {made['versions']['torch']}", *more)
    load = [value for value in result["load"].values() if value is not None]
    busy = f"; load {load[0]:.1f} before, {load[-1]:.1f} after" if load else ""
    return f"{', '.join(facts)}, {made['utc'][:10]}{busy}."
