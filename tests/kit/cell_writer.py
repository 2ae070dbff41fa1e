"""Writes cells in a loop: run as a program by the tests that kill it or run two of it at once."""

import sys

from normscope.records import Cell, Record, Store

CONFIG = {"study": "demo", "seeds": 1000}
ROWS = 300


def cell_of(seed: int) -> Cell:
    return Cell("demo", "bn" if seed % 2 else "none", seed, {"lr": 0.1 * (seed % 3)}, {"steps": ROWS})


def records_of(cell: Cell) -> list[Record]:
    return [Record(cell.id, step, "training", "", "loss", cell.seed + 1 / (1 + step)) for step in range(ROWS)]


def main(folder: str, first: int, stop: int, stride: int) -> None:
    store = Store.create(folder, CONFIG)
    print("ready", flush=True)
    for seed in range(first, stop, stride):
        cell = cell_of(seed)
        if cell.id not in store.completed():
            store.write_cell(cell, records_of(cell), wall_s=0.1)


if __name__ == "__main__":
    main(sys.argv[1], *(int(word) for word in sys.argv[2:5]))
