"""Progress of long work: bars on a terminal, lines in a pipe."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import typer

from normscope._errors import one_line, printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Bars:
    """A bar for each part that is under way; above them, where there are several parts, a bar for all of them."""

    def __init__(self, bars: "Progress", parts: int) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._ended: set[str] = set()
        self._all = bars.add_task(f"{parts} studies", total=parts) if parts > 1 else None

    def __call__(self, part: str, done: int, total: int) -> None:
        """Show how much of a part is done."""
        if part not in self._tasks:
            self._tasks[part] = self._bars.add_task(part, total=total)
        self._bars.update(self._tasks[part], completed=done, total=total)

    def end(self, part: str, line: str) -> None:
        """Replace a part's bar by a line."""
        if self._all is not None and part in self._tasks:
            self._bars.remove_task(self._tasks.pop(part))
            self._bars.update(self._all, completed=len(self._ended | {part}))
            self._ended.add(part)
        self._bars.console.print(line, highlight=False, markup=False)


def _is_terminal() -> bool:
    """Return whether standard error is a terminal; a user's code may have closed it."""
    return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()


def _tell(line: str) -> None:
    """Write a line on standard error, unless a user's code has closed it."""
    with suppress(ValueError, OSError):
        typer.echo(one_line(line), err=True)


def ending(bars: "Bars | None", count: int) -> Callable[[str, str, float], None] | None:
    """Return a function that reports how a study ended, in a line on standard error; None for a single study.

    In a pipe, which shows no bars, these lines are the only progress.
    """
    if count < 2:
        return None
    ended: list[str] = []

    def report(slug: str, result: str, seconds: float) -> None:
        if slug in ended:  # looked at again
            line = f"{slug}: {result}, {seconds:.0f} s"
        else:
            ended.append(slug)
            line = f"{len(ended)} of {count}: {slug}: {result}, {seconds:.0f} s"
        if bars is None:
            _tell(line)
        else:
            bars.end(slug, one_line(line))

    return report


def lines_of_progress(parts: int = 8) -> Callable[[str, int, int], None]:
    """Return a function for (part, steps done, steps in all) that writes a line on standard error now and then.

    Args:
        parts: Lines of each part, at most.
    """
    told: dict[str, int] = {}

    def report(part: str, done: int, total: int) -> None:
        reached = done * parts // total if total else parts
        if reached > told.get(part, 0):
            told[part] = reached
            _tell(f"{part}: {done} of {total}")

    return report


@contextmanager
def progress_bar(quiet: bool, studies: int = 1) -> Iterator["Bars | None"]:
    """Yield a function for (part, steps done, steps in all) that draws bars; None in a pipe, or if ``quiet``."""
    if quiet or not _is_terminal():
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


@contextmanager
def status_line(quiet: bool) -> Iterator[Callable[[str], None] | None]:
    """Yield a function that shows what is being done in a line that changes; None in a pipe, or if ``quiet``."""
    if quiet or not _is_terminal():
        yield None
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(stderr=True).status("importing") as status:
        yield lambda doing: status.update(escape(printable(doing)))


@contextmanager
def interruptible(advice: str) -> Iterator[None]:
    """Turn an interrupt into one line with this advice, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"normscope: interrupted; {advice}", err=True)
        raise typer.Exit(130) from None
