"""Appends records to an open-ended run in a process of its own, a flush a step."""

from multiprocessing.connection import Connection
from multiprocessing.synchronize import Semaphore

from normscope.records import Record, Store, parts


def append_steps(
    folder: str, cell: str, steps: int, tell: Connection | None = None, leave: Semaphore | None = None
) -> None:
    """Write so many flushes of one record each, which become larger parts three by three.

    With ``tell`` each flush is reported; with ``leave`` ten flushes are written for each time it is released.
    """
    parts.FAN_IN, parts.LAG = 3, 0
    store = Store.create(folder, {"kind": "scope"})
    for step in range(steps):
        if leave is not None and step % 10 == 0:
            leave.acquire()
        store.append([Record(cell, step, "p", "", "n", float(step))])
        store.flush()
        if tell is not None:
            tell.send(step)
