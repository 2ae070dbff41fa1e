"""Open-ended runs for tests of their parts: records of numbered steps, a flush a step."""

from pathlib import Path

import polars as pl

from normscope.records import Record, Store, parts


def record(step: int, cell: str = "scope") -> Record:
    return Record(cell, step, "p", f"layer{step % 3}", "n", step / 8)


def steps_in(folder: Path, cell: str = "scope") -> list[int]:
    frame = Store.open(folder).frame()
    return frame.filter(pl.col("cell") == cell)["step"].sort().to_list()


def ranges(folder: Path) -> list[tuple[int, int]]:
    return [(part.first, part.last) for part in parts.list_parts(folder)]


def filled(folder: Path, flushes: int) -> Store:
    store = Store.create(folder, {"kind": "scope"})
    for step in range(flushes):
        store.append([record(step)])
        store.flush()
    return store
