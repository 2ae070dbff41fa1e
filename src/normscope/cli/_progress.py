"""How far long work is: bars on a terminal, lines in a pipe."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bars:
    """A bar for what is under way, and above it one for all of it where it has several parts."""

    def __init__(self, bars: "Progress", parts: int) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._all = bars.add_task(f"{parts} studies", total=parts) if parts > 1 else None

    def __call__(self, part: str, done: int, total: int) -> None:
        """Show how far a part is."""
        if part not in self._tasks:
            self._tasks[part] = self._bars.add_task(part, total=total)
        self._bars.update(self._tasks[part], completed=done, total=total)

    def end(self, part: str, line: str) -> None:
        """Put a line in the place of a part's bar."""
        if self._all is not None and part in self._tasks:
            self._bars.remove_task(self._tasks.pop(part))
            self._bars.advance(self._all)
        self._bars.console.print(line, highlight=False, markup=False)


def ending(bars: "Bars | None", count: int) -> Callable[[str, str, float], None] | None:
    """Return what says how studies ended, a line each on standard error: in a pipe that is all there is to see."""
    if count < 2:
        return None
    ended = []

    def say(slug: str, said: str, seconds: float) -> None:
        ended.append(slug)
        line = f"{len(ended)} of {count}: {slug}: {said}, {seconds:.0f} s"
        if bars is None:
            typer.echo(line, err=True)
        else:
            bars.end(slug, line)

    return say


@contextmanager
def progress_bar(quiet: bool, studies: int = 1) -> Iterator["Bars | None"]:
    """Yield what the runner calls with (study, cells done, cells in all): a bar on a terminal, nothing in a pipe."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield Bars(bars, studies)
