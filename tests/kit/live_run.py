"""An open-ended run to look at while it is written; as a program, a training that is watched.

python live_run.py FOLDER STEPS PAUSE
"""

import math
import sys
import time
from pathlib import Path

from normscope.records import Record, Store, claim_cell

HOSTILE = "<img src=x onerror=\"document.title='taken'\">"


def rows_of(cell: str, step: int, layers: int = 6) -> list[Record]:
    """What two probes read at a step."""
    rows = [
        Record(cell, step, "gradient_flow", f"features.{k}", "norm", math.exp(-step / 100) * 1.3**k, "1")
        for k in range(layers)
    ]
    return [
        *rows,
        Record(cell, step, "gradient_flow", "", "growth", 1.2, "1"),
        Record(cell, step, "p", "", "loss", 2.0),
    ]


def begin(folder: str | Path, name: str = "scope", **claimed) -> tuple[Store, str]:
    """Begin a run as a scope does: the store, and the cell."""
    store = Store.create(folder, {"kind": "scope"})
    return store, claim_cell(folder, name, facts={"model": "ResNet", "every": 50}, **claimed)


def train(folder: str, steps: int, pause: float) -> None:
    """Take steps, as far apart as the pause in seconds, and tell the time of the first due step."""
    store, cell = begin(folder)
    for step in range(steps):
        if step == 0:
            print(time.time(), flush=True)
        store.append(rows_of(cell, step))
        time.sleep(pause)
    store.close()


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
