"""The cost of batch norm on a GPU as text: rows for the terminal, a page in Markdown for the repository."""

from collections.abc import Mapping
from typing import Any

from normscope.bench._tables import Table, markdown_table

COLUMNS = ("input", "shape", "type", "layout", "work", "candidate", "ms", "quartiles", "share of the floor")


def rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return one tuple of ``COLUMNS`` for each candidate and input."""
    return [
        (
            row["input"],
            str(tuple(row["shape"])),
            row["dtype"],
            row["layout"],
            row["work"],
            row["candidate"],
            f"{row['ms']:.3f}",
            f"{row['low']:.3f} to {row['high']:.3f}",
            f"{row['share']:.2f}",
        )
        for row in result["rows"]
    ]


def terminal(result: Mapping[str, Any]) -> list[Table]:
    """Return the tables for the terminal: columns and rows."""
    return [(COLUMNS, rows(result))]


def markdown(result: Mapping[str, Any]) -> str:
    """Return the page."""
    return f"""# What batch norm costs on {result["device"]}

Batch norm and ReLU in training. Made by `normscope bench layers --device cuda`, torch
{result["provenance"]["versions"]["torch"]}, {result["provenance"]["utc"][:10]}.

{markdown_table(COLUMNS, rows(result))}"""


def conditions(result: Mapping[str, Any]) -> str:
    """Return the name of the device."""
    return str(result["device"])
