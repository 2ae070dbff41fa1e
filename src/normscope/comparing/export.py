"""Export a comparison."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from normscope._errors import UsageError
from normscope.comparing.page import ComparisonPage

if TYPE_CHECKING:
    import polars as pl

#: What an export can be.
KINDS = ("pdf", "svg", "csv", "latex")


def check_kinds(kinds: Sequence[str]) -> list[str]:
    """Return the kinds of an export, as they are.

    Raises:
        UsageError: There is no such kind.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(f"no export {kind!r}: use {', '.join(KINDS)}")
    return list(kinds)


def export(
    folder: Path, kinds: Sequence[str], page: ComparisonPage, answers: "pl.DataFrame", records: "pl.DataFrame"
) -> list[Path]:
    """Write figures, answers and records into a folder."""
    raise NotImplementedError
