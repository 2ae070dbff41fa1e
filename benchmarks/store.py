"""Time and memory that a store of millions of records takes to write and to read: ``python -m benchmarks.store``.

A cell of a study of 20 layers, 50 quantities and 250 steps holds 250,000 records. Each reading is done in a process of
its own, so that its peak of memory is its own. Beside it stands Polars reading the same files without any proof, order
or cell: what no store can undercut.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LAYERS, QUANTITIES, STEPS = 20, 50, 250
CONFIG = {"study": "benchmark"}


def records_of(cell: str, seed: int) -> Iterator["object"]:
    """Yield the records of a cell."""
    from normscope.records import quick_record

    for step in range(STEPS):
        for layer in range(LAYERS):
            for quantity in range(QUANTITIES):
                value = math.sin(step * 31.7 + layer * 7.3 + quantity + seed)  # not a value twice, as in a training
                yield quick_record(cell, step, "probe", f"layer{layer}", f"quantity{quantity}", value, "")


def write(folder: Path, cells: int) -> None:
    """Write the store."""
    from normscope.records import Cell, Store

    store = Store.create(folder, CONFIG)
    for seed in range(cells):
        cell = Cell("benchmark", "bn" if seed % 2 else "none", seed // 2, {"lr": 0.1})
        store.write_cell(cell, list(records_of(cell.id, seed)), wall_s=1.0)


def frame(folder: Path) -> int:
    """Read all records, proven and in order."""
    from normscope.records import Store

    return Store.open(folder).frame().height


def one_quantity(folder: Path) -> int:
    """Read one quantity of one layer, as a figure does."""
    from normscope.records import Store

    return Store.open(folder).frame(name="quantity7", site="layer3").height


def sql(folder: Path) -> int:
    """Ask for means by SQL."""
    from normscope.records import Store

    return Store.open(folder).sql("SELECT arm, seed, name, avg(value) FROM records GROUP BY ALL").height


def bare(folder: Path) -> int:
    """Let Polars read the same files."""
    import polars as pl

    return pl.concat([pl.read_parquet(path, glob=False) for path in sorted(folder.glob("part-*.parquet"))]).height


READINGS: dict[str, Callable[[Path], int]] = {each.__name__: each for each in (bare, frame, one_quantity, sql)}


def _measured(name: str, folder: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.store", "--read", name, "--folder", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=float, default=5e6, help="how many records the store holds")
    parser.add_argument("--rounds", type=int, default=3, help="readings of each kind; the median is told")
    parser.add_argument("--read", choices=READINGS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        import polars  # noqa: F401  # its import is no part of a reading

        began = time.perf_counter()
        rows = READINGS[given.read](given.folder)
        seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"rows": rows, "seconds": seconds, "mib": peak}))
        return
    cells = max(1, round(given.records / (LAYERS * QUANTITIES * STEPS)))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        write(Path(folder), cells)
        wrote = time.perf_counter() - began
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
        rows = cells * LAYERS * QUANTITIES * STEPS
        print(f"{rows:,} records in {cells} cells, {size:.0f} MiB: made and written in {wrote:.1f} s.\n")
        print("| reading | rows | seconds | times Polars alone | peak memory, MiB |\n|---|---:|---:|---:|---:|")
        base = 0.0
        for name in READINGS:
            rounds = sorted(
                (_measured(name, Path(folder)) for _ in range(given.rounds)), key=lambda each: each["seconds"]
            )
            middle = rounds[len(rounds) // 2]
            base = base or middle["seconds"]
            print(
                f"| {name.replace('_', ' ')} | {middle['rows']:,.0f} | {middle['seconds']:.2f} "
                f"| {middle['seconds'] / base:.1f} | {middle['mib']:.0f} |"
            )


if __name__ == "__main__":
    main()
