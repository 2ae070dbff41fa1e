"""What every command prints by: tables, pages, JSON without numbers that it has none for, files."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import typer

from normscope._errors import UsageError


def write_text(path: Path, text: str) -> None:
    """Write a file, its folders made; what cannot be written is a mistake in --out."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}; choose another --out") from None


def say_page(unit: Any, as_json: bool) -> None:
    """Print the page of a study, probe or layer."""
    page = unit.page()
    if as_json:
        print_json({"code": unit.CODE, "title": unit.title(), "sources": list(unit.SOURCES), "page": page})
        return
    typer.echo(f"{unit.CODE}\n{unit.title()}")
    for heading, text in page.items():
        typer.echo(f"\n{heading}\n{'-' * len(heading)}\n{text}")
    if unit.SOURCES:
        typer.echo("\nSources\n-------\n" + "\n".join(unit.SOURCES))


def wide() -> Any:
    """Return a console: as wide as the terminal, 100 columns in a pipe."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 100)


def plain_table(*columns: str) -> Any:
    """Return an empty table whose long cells fold."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_json(document: Any) -> None:
    """Print a document as JSON, with null for numbers that JSON has none for."""
    typer.echo(json.dumps(_finite(document), indent=2, default=str, allow_nan=False))


def _finite(value: Any) -> Any:
    """Put null for what JSON has no number for: an unbounded end of an interval."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
