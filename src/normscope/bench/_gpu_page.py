"""The cost of batch norm on a GPU: measured by the kernel that is asked for, and as text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from normscope import ops
from normscope.bench._gpu import measure_gpu
from normscope.bench._page import markdown_table
from normscope.records import provenance

COLUMNS = ("input", "shape", "type", "layout", "work", "candidate", "ms", "quartiles", "share of the floor")


def measure(progress: Callable[[str, int, int], None] | None = None) -> dict[str, Any]:
    """Measure our kernel, torch eager and torch.compile on the GPU.

    Args:
        progress: Called with (what is measured, cases done, cases in all).

    Returns:
        A JSON object: ``rows``, ``device`` and ``provenance``.

    Raises:
        UsageError: There is no CUDA device.
    """
    with ops.using("kernel") if torch.cuda.is_available() else ops.using("torch"):
        rows = measure_gpu(progress)
    return {
        "rows": [asdict(row) for row in rows],
        "device": torch.cuda.get_device_name(),
        "provenance": provenance.collect(),
    }


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


def terminal(result: Mapping[str, Any]) -> list[tuple[Sequence[str], list[tuple[str, ...]]]]:
    """Return the tables for the terminal: columns and rows."""
    return [(COLUMNS, rows(result))]


def markdown(result: Mapping[str, Any]) -> str:
    """Return the page."""
    return f"""# What batch norm costs on {result["device"]}

Batch norm and ReLU in training. Made by `normscope bench layers --device cuda`, torch
{result["provenance"]["versions"]["torch"]}, {result["provenance"]["utc"][:10]}.

{markdown_table(COLUMNS, rows(result))}"""
