"""Appends records to an open-ended run in a process of its own, a flush a step."""

from multiprocessing.connection import Connection

from normscope.records import Record, Store, parts


def append_steps(folder: str, cell: str, steps: int, tell: Connection | None = None) -> None:
    """Write so many flushes of one record each, which become larger parts three by three."""
    parts.FAN_IN, parts.LAG = 3, 0
    store = Store.create(folder, {"kind": "scope"})
    for step in range(steps):
        store.append([Record(cell, step, "p", "", "n", float(step))])
        store.flush()
        if tell is not None:
            tell.send(step)
