"""Sentences on what stands out, composed beside the answers to viewers, so that none of them waits."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

Compose = Callable[[Path], Mapping[str, Sequence[str]]]
"""Reads a run's folder; returns the sentences of each cell."""

#: Seconds between the beginnings of two compositions; the first waits as long, so that rows are shown before.
PAUSE = 10.0
#: Rows above which the folder is not read as a whole again and again.
MOST_ROWS = 300_000


class Sentences:
    """Keeps the newest sentences of a run, and composes new ones in a thread once there are new rows.

    Args:
        folder: The run's folder.
        compose: Composes the sentences; an exception in it leaves the old ones.
    """

    def __init__(self, folder: Path, compose: Compose) -> None:
        self._folder, self._compose = folder, compose
        self._last = time.monotonic()
        self._rows = 0
        self._found: Mapping[str, Sequence[str]] = {}
        self._thread: threading.Thread | None = None

    def of(self, cell: str, rows: int) -> Sequence[str]:
        """Return the newest sentences of a cell.

        Args:
            cell: Name of the cell.
            rows: How many rows the run has by now, over all cells.
        """
        due = rows != self._rows and rows <= MOST_ROWS and time.monotonic() - self._last >= PAUSE
        if due and (self._thread is None or not self._thread.is_alive()):
            self._rows, self._last = rows, time.monotonic()
            self._thread = threading.Thread(target=self._run, name="sentences", daemon=True)
            self._thread.start()
        return self._found.get(cell, ())

    def _run(self) -> None:
        with suppress(Exception):  # a part may vanish while it is read: the next composition reads it anew
            self._found = self._compose(self._folder)
