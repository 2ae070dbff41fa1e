"""Dataclasses as JSON files with a format and a version, read strictly: files that are committed and handed on."""

import json
from pathlib import Path
from typing import Any, TypeVar

from normscope._errors import DataError, StoreError
from normscope.records.addresses import text_at
from normscope.records.json import build, plain

T = TypeVar("T")
#: The command that reads a file, by its format.
_READERS = {"normscope evidence": "normscope report FILE", "normscope comparison": "normscope atlas FILE"}


def dumps(value: Any, name: str, version: int) -> str:
    """Return the text of a file.

    Args:
        value: The dataclass.
        name: Of the format.
        version: Of its layout.
    """
    document = {"format": name, "version": version, **plain(value)}
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read(path: str | Path, kind: type[T], name: str, version: int, holds: str, command: str) -> T:
    """Read a file that `dumps` wrote.

    Args:
        path: The file.
        kind: The dataclass.
        name: Of the format.
        version: Of its layout.
        holds: What such a file holds, in words.
        command: What makes one.

    Raises:
        StoreError: The file is missing, cut short, of another kind or version, or lacks or garbles a field.
    """
    source, again = Path(path), f"make it with `{command}`"
    try:
        document = json.loads(text_at(source), parse_constant=refuse, object_pairs_hook=_without_repeats)
    except DataError as error:
        raise StoreError(str(error)) from None
    except (ValueError, RecursionError):
        raise StoreError(f"{source} is not whole JSON: {again}") from None
    there = document.pop("format", None) if isinstance(document, dict) else None
    if there != name:
        reader = _READERS.get(str(there))
        raise StoreError(f"{source} holds no {holds}: {f'`{reader}` reads it' if reader else again}")
    layout = document.pop("version", None)
    if type(layout) is not int or layout != version:
        anew = f"make it anew from its runs, `{command}`"
        raise StoreError(f"{source} has layout {str(layout)[:20]}, this version reads {version}: {anew}")
    try:
        found: T = build(kind, document)
    except ValueError as error:
        raise StoreError(f"{source} is damaged ({error}): {again}") from None
    return found


def refuse(name: str) -> Any:
    """Refuse what Python writes in place of numbers that JSON does not have.

    Raises:
        ValueError: Always.
    """
    raise ValueError(f"{name} is no JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key stands twice")
    return dict(pairs)
