"""Tasks that kill the process that does them, as a machine does that has no memory left."""

import os
import signal
import time
from pathlib import Path


def do(folder, task):
    """Do a task; a dictionary of its name, of how often it kills its process, and of what it waits for.

    Args:
        folder: Where tasks leave marks: ``NAME.PID`` for each begin.
        task: ``name``; ``deaths``; ``after``, a name that must have begun before.
    """
    folder = Path(folder)
    while "after" in task and not list(folder.glob(f"{task['after']}.*")):
        time.sleep(0.02)
    mark = folder / f"{task['name']}.{os.getpid()}"
    before = len(list(folder.glob(f"{task['name']}.*")))
    mark.touch()
    if before < task.get("deaths", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if task.get("raises"):
        raise ZeroDivisionError(task["name"])
    return task["name"]


def name(task):
    return f"the task {task['name']}"
