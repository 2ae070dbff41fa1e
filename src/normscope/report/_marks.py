"""Parts of a user's page that a command writes: what stands between two marks is replaced, and nothing else."""

import re
from collections.abc import Callable
from pathlib import Path

from normscope._errors import DataError, StoreError
from normscope.records.reading import text_of_file


def between_marks(
    path: str | Path, begin: str, end: str, write: Callable[[re.Match[str]], str], *, advice: str
) -> str | None:
    """Return a file's text with new text between each mark that begins a part and the mark that ends it.

    Args:
        path: The file.
        begin: Pattern of the marks that begin a part.
        end: The mark that ends a part.
        write: Returns the text of a part, which ends with a line break, from the match of the mark that begins it.
        advice: What to do where marks are not in pairs, for the message.

    Returns:
        None where the file has no mark, or is not there.

    Raises:
        StoreError: The file cannot be read, or a mark stands alone.
    """
    target = Path(path)
    try:
        there = text_of_file(target) if target.exists() else ""
    except DataError as error:
        raise StoreError(str(error)) from None
    marks = list(re.finditer(f"(?P<begin>{begin})|(?P<end>{re.escape(end)})", there))
    if not marks:
        return None
    pairs = list(zip(marks[::2], marks[1::2], strict=False))
    if len(marks) % 2 or any(first["begin"] is None or last["end"] is None for first, last in pairs):
        raise StoreError(f"{target} {advice}")
    parts, kept = [], 0
    for first, last in pairs:
        parts += [there[kept : first.end()], "\n", write(first)]
        kept = last.start()
    return "".join([*parts, there[kept:]])
