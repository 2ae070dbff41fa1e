"""Condensed comparisons as JSON files."""

from pathlib import Path

from normscope._errors import StoreError
from normscope.atlas.check import faults
from normscope.atlas.layout import KeptComparison
from normscope.records import documents

FORMAT = "normscope comparison"
VERSION = 1
#: What makes such a file.
COMMAND = "normscope report RUN --condense FILE --network 'NAME on DATA'"


def dumps(comparison: KeptComparison) -> str:
    """Return the file's text."""
    return documents.dumps(comparison, FORMAT, VERSION)


def read(path: str | Path) -> KeptComparison:
    """Read a file that `dumps` wrote, strictly.

    Raises:
        StoreError: The file is missing, cut short, of another kind or version, lacks or garbles a field, or its numbers
            do not fit its seeds and arms.
    """
    found = documents.read(path, KeptComparison, FORMAT, VERSION, "condensed comparison", COMMAND)
    if fault := next(faults(found), ""):
        raise StoreError(f"{path} cannot be judged: {fault}: make it with `{COMMAND}`")
    return found
