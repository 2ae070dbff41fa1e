"""Export a comparison."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from normscope.comparing.page import ComparisonPage

if TYPE_CHECKING:
    import polars as pl

#: What an export can be.
KINDS = ("pdf", "svg", "csv", "latex")


def export(
    folder: Path, kinds: Sequence[str], page: ComparisonPage, answers: "pl.DataFrame", records: "pl.DataFrame"
) -> list[Path]:
    """Write figures, answers and records into a folder."""
    raise NotImplementedError
