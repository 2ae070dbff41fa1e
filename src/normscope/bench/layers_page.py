"""The cost of batch norm as text: rows for the terminal, a page in Markdown for the repository."""

import statistics
from collections.abc import Mapping
from typing import Any

from normscope.bench._tables import Table, machine, markdown_table, with_quartiles

COLUMNS = (
    "input",
    "layout",
    "type",
    "threads",
    "allocator",
    "torch ms",
    "ours ms",
    "torch / ours",
    "torch / memory",
    "in place",
    "BN alone",
)
LIMITS = ("input", "layout", "type", "threads", "allocator", "copy / forward", "add / backward")
COMPILED = ("input", "layout", "ours ms", "torch compiled / ours", "ours compiled / ours", "torch / ours compiled")

#: Bounds set before anything was measured: least ratio torch / ours of BN + ReLU, float32.
_TARGETS = {("contiguous", 4): 4.0, ("channels_last", 4): 3.0, ("contiguous", 2): 1.9}


def rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the table of times and ratios: one tuple of ``COLUMNS`` for each case."""
    return [
        (
            *_case(row),
            f"{row['ms']['torch']:.3g}",
            f"{row['ms']['ours']:.3g}",
            with_quartiles(row["ratios"]["torch / ours"]) + _verdict(row),
            f"{row['ratios']['torch / memory']['median']:.2f}",
            f"{row['ratios']['torch in place / ours']['median']:.2f}",
            f"{row['ratios']['torch BN / ours BN']['median']:.2f}",
        )
        for row in result["rows"]
    ]


def limits(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the share of memory's limit that is reached, for inputs of 8 MB and more: tuples of ``LIMITS``."""
    return [
        (*_case(row), *(with_quartiles(row["ratios"][name]) for name in LIMITS[-2:]))
        for row in result["rows"]
        if _bytes(row) >= 8e6
    ]


def compiled(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the comparison with compiled code: tuples of ``COMPILED``."""
    return [
        (
            _shape(row),
            row["layout"],
            f"{row['ms']['ours']:.3g}",
            *(with_quartiles(row["ratios"][name]) for name in COMPILED[-3:]),
        )
        for row in result["rows"]
        if "ours compiled / ours" in row["ratios"]
    ]


def markdown(result: Mapping[str, Any], *, notes: str = "") -> str:
    """Return the whole page.

    Args:
        result: What ``measure`` returned.
        notes: Paragraphs to put before the tables.
    """
    parts = [
        f"""# What batch norm costs

Batch norm and ReLU in training, forward and backward: `torch.nn.BatchNorm` and `ReLU` over
`normscope.layers.BatchNorm(activation="relu")`. In each round every candidate runs once, in random order; medians over
rounds of the ratio within a round, with quartiles. One thread is timed in the thread's processor time, all threads in
wall time. *torch / memory*: torch's time over a copy and an addition of the input, each of which reads and writes every
value once; what a kernel bound by memory alone would reach. *Recycled*: after
`normscope.allocator.keep_large_blocks()`; *default*: glibc as it comes. *In place*: the same ratio where torch's ReLU
is `inplace=True`. *BN alone*: neither side has an activation. Each machine has a page of its own: *way* has its caches,
and how the kernel was calibrated to them.

{conditions(result)} Way: {result["kernel"]}. Made by `normscope bench layers --out FILE`.
""",
        f"{notes.strip()}\n" if notes else "",
        markdown_table(COLUMNS, rows(result)),
        overall(result),
    ]
    if found := limits(result):
        parts += [
            """## What memory allows

A copy of the input over our forward, and an addition of two such tensors over our backward (both less the forward):
1 would be a kernel that costs no more than its reads and writes. Inputs of 8 MB and more. The aim on one thread, in
float32 and recycled: .74 forward and .625 backward.
""",
            markdown_table(LIMITS, found),
        ]
    if found := compiled(result):
        parts += [
            """## Beside compiled code

`torch.compile` of torch's layers, and of ours (which the compiler is given a written-out backward of), over our kernel
in eager mode; and torch eager over ours compiled. float32, all threads, recycled.
""",
            markdown_table(COMPILED, found),
        ]
    if result["steps"]:
        parts += [
            """## In a whole training step

SGD steps at 32x32, wall time of all threads, default allocator. *Share*: of the step that goes when batch norm and
activation are taken out.
""",
            markdown_table(
                (
                    "network",
                    "arithmetic",
                    "batch",
                    "torch ms",
                    "ours ms",
                    "without ms",
                    "torch / ours",
                    "share, torch",
                    "share, ours",
                ),
                [
                    (
                        step["model"],
                        step["kind"],
                        str(step["batch"]),
                        *(f"{step['ms'][name]:.0f}" for name in ("torch", "ours", "none")),
                        with_quartiles(step["torch / ours"]),
                        *(f"{100 * step['share'][name]:.0f} %" for name in ("torch", "ours")),
                    )
                    for step in result["steps"]
                ],
            ),
        ]
    if result["memory"]:
        base = {row["model"]: row["bytes"] for row in result["memory"] if row["arm"] == "torch"}
        parts += [
            """## Peak memory

Growth of the process's peak over three training steps, batch norm with leaky ReLU, float32.
""",
            markdown_table(
                ("network", "batch", "layers", "MiB", "of torch's"),
                [
                    (
                        row["model"],
                        str(row["batch"]),
                        row["arm"],
                        f"{row['bytes'] / 2**20:.0f}",
                        f"{row['bytes'] / base[row['model']]:.2f}" if base.get(row["model"]) else "",
                    )
                    for row in result["memory"]
                ],
            ),
        ]
    return "\n".join(part for part in parts if part)


def overall(result: Mapping[str, Any]) -> str:
    """Return a sentence with the geometric mean and the least of torch's times over ours."""
    found = [row["ratios"]["torch / ours"]["median"] for row in result["rows"]]
    mean, least = statistics.geometric_mean(found), min(found)
    return f"All {len(found)} cases together: {mean:.2f} times torch (geometric mean), {least:.2f} at least.\n"


def conditions(result: Mapping[str, Any]) -> str:
    """Return a sentence on the machine and its load."""
    return machine(result)


def _case(row: Mapping[str, Any]) -> tuple[str, ...]:
    return _shape(row), row["layout"], row["dtype"], str(row["threads"]), row["allocator"]


def _shape(row: Mapping[str, Any]) -> str:
    return f"({', '.join(map(str, row['shape']))})"


def _bytes(row: Mapping[str, Any]) -> int:
    count = 4 if row["dtype"] == "float32" else 2
    for size in row["shape"]:
        count *= size
    return count


def _verdict(row: Mapping[str, Any]) -> str:
    """Return a mark if a row misses its bound: that of the table on recycled memory, at most 2 on default, else 1."""
    ratio = row["ratios"]["torch / ours"]["median"]
    least = 1.0
    if row["dtype"] == "float32":
        least = _TARGETS[row["layout"], len(row["shape"])]
        least = min(least, 2.0) if row["allocator"] == "default" else least
    return "" if ratio >= least else f", below {least:g}"


def _short(row: Mapping[str, Any]) -> tuple[str, ...]:
    ratios = row["ratios"]
    times = f"{row['ms']['torch']:.3g}", f"{row['ms']['ours']:.3g}"
    names = ("torch / ours", "torch in place / ours", "torch BN / ours BN", "copy / forward", "add / backward")
    return (
        " ".join(_case(row)).replace("channels_last", "last").replace("contiguous ", ""),
        *times,
        *(f"{ratios[name]['median']:.2f}" for name in names),
    )


def terminal(result: Mapping[str, Any]) -> list[Table]:
    """Return the tables for the terminal: columns and rows."""
    columns = (
        "input, type, threads, allocator",
        "torch ms",
        "ours ms",
        "torch/ours",
        "in place",
        "BN",
        "copy/fwd",
        "add/bwd",
    )
    tables: list[Table] = [(columns, [_short(row) for row in result["rows"]])]
    if found := compiled(result):
        tables.append((COMPILED, found))
    return tables
