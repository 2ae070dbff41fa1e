"""Printing of all commands: text, tables, pages of units, JSON."""

import json
import sys
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import typer

from normscope._errors import UsageError, printable
from normscope.records.addresses import require_folder, shown


def print_text(text: str) -> None:
    """Print a text that ends with its own line break; letters that the terminal's encoding lacks are escaped.

    Raises:
        UsageError: There is no standard output, or it cannot be written.
    """
    _require_stdout()
    encoding = sys.stdout.encoding or "utf-8"
    try:
        typer.echo(text.encode(encoding, "backslashreplace").decode(encoding), nl=False)
    except BrokenPipeError:
        raise
    except OSError as error:
        with suppress(OSError, ValueError):
            sys.stdout.close()  # the rest of its buffer would fail again when the program ends
        raise UsageError(f"cannot write to standard output: {error.strerror}") from None


def _require_stdout() -> None:
    if sys.stdout is None or sys.stdout.closed:  # a user's code may have closed it
        raise UsageError("there is no standard output to print to")


def print_lines(*lines: str) -> None:
    """Print lines of text that may hold names of a user's: what a terminal would obey is escaped."""
    print_text("".join(f"{printable(line)}\n" for line in lines))


def print_json(document: Any) -> None:
    """Print a document as JSON; a number that JSON lacks, such as an interval's infinite end, is null."""
    from normscope.records.json import or_null, plain

    print_text(json.dumps(plain(document, or_null), indent=2, default=str, allow_nan=False) + "\n")


def print_page(heading: Sequence[str], unit: Any) -> None:
    """Print the page of a study, probe, layer, rule or question.

    Args:
        heading: The lines above the page.
        unit: The unit, or its class.
    """
    from normscope.report import terminal

    lines = [terminal(line) for line in heading]
    for title, text in unit.page().items():
        lines += ["", title, "-" * len(title), terminal(text)]
    if unit.SOURCES:
        lines += ["", "Sources", "-------", *unit.SOURCES]
    if address := unit.address():
        lines += ["", f"On the web: {address}"]
    print_lines(*lines)


def print_unit(unit: Any, as_json: bool) -> None:
    """Print code, title, page and sources of a study, probe, layer, rule or question."""
    if as_json:
        print_json({"code": unit.CODE, "title": unit.title(), "sources": unit.SOURCES, "page": unit.page()})
    else:
        print_page((unit.CODE, unit.title()), unit)


def print_tables(tables: Sequence[tuple[Sequence[str], Sequence[Sequence[str]]]], *lines: str) -> None:
    """Print tables, each as its columns and its rows, and lines below them."""
    console = wide()
    for columns, rows in tables:
        console.print(table(columns, rows))
    print_lines(*lines)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """Return a table for `wide` to print; long cells fold, but for names in the first column, which are copied."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD)
    names = all(row[0] and " " not in row[0] for row in rows)
    for index, column in enumerate(columns):
        made.add_column(column, overflow="fold", no_wrap=names and index == 0)
    for row in rows:
        made.add_row(*(Text(printable(cell)) for cell in row))
    return made


def wide() -> Any:
    """Return a console: as wide as the terminal, 100 columns in a pipe."""
    from rich.console import Console

    _require_stdout()
    return Console(width=None if sys.stdout.isatty() else 100)


def open_page(page: Path) -> None:
    """Open a page that was written in the browser.

    Raises:
        UsageError: It lies in a bucket.
    """
    webbrowser.open(require_folder(page, "the browser").resolve().as_uri())


def written(path: Path | None) -> list[str]:
    """Return the line that names a file that was written; none where no file was asked for."""
    return [] if path is None else [f"Written to {shown(path)}"]
