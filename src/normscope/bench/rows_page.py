"""The cost of layer, RMS, group and instance norm as text: rows for the terminal, a page in Markdown."""

from collections.abc import Mapping
from typing import Any

from normscope.bench._tables import Table, machine, markdown_table, with_quartiles

COLUMNS = ("layer", "input", "type", "threads", "torch ms", "ours ms", "copy ms", "ours / torch", "ours / copy")


def rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the table: one tuple of ``COLUMNS`` for each case."""
    return [
        (
            row["layer"],
            f"({', '.join(map(str, row['shape']))})",
            row["dtype"],
            str(row["threads"]),
            *(f"{row['ms'][name]:.3g}" for name in ("torch", "ours", "copy")),
            with_quartiles(row["ours / torch"]),
            f"{row['ours / copy']['median']:.1f}",
        )
        for row in result["rows"]
    ]


def markdown(result: Mapping[str, Any]) -> str:
    """Return the whole page."""
    return f"""# What layer, RMS, group and instance norm cost

Forward and backward in training, with gain and shift (RMS norm: gain): `normscope.layers` over `torch.nn` eager.
Ours is faster below 1. In each round every candidate runs once, in random order; medians over rounds of the ratio
within a round, with quartiles. One thread is timed in the thread's processor time, all threads in wall time. *Copy*: of
the input, which reads a tensor and writes one; a forward and a backward read three tensors and write two at least,
which is 2.5 copies. Group norm has 8 groups. Default allocator.

{conditions(result)} Kernel: {result["kernel"]}. Made by
`normscope bench layers --rows --out benchmarks/results/layers-rows.md`.

{markdown_table(COLUMNS, rows(result))}"""


def terminal(result: Mapping[str, Any]) -> list[Table]:
    """Return the table for the terminal."""
    return [(COLUMNS, rows(result))]


def conditions(result: Mapping[str, Any]) -> str:
    """Return a sentence on the machine and its load."""
    return machine(result)
