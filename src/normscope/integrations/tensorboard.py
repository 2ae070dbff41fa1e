"""TensorBoard: records as scalars, findings as texts, the page beside the event files."""

import shutil
from collections.abc import Iterable
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from normscope.integrations import allowed, missing, scalar_name, sentences
from normscope.records import Finding, Record

try:
    from torch.utils.tensorboard import SummaryWriter
except ModuleNotFoundError as error:
    raise missing("tensorboard") from error


class TensorBoardSink:
    """Shows what a scope reads in TensorBoard: one scalar a quantity and site, at the step at which it was read.

    Args:
        writer: The folder of a new ``SummaryWriter``, or the training's own writer (Lightning: ``logger.experiment``).

    Example:
        >>> scope = ns.watch(model, optimizer, sinks=[TensorBoardSink("runs/mine")])
    """

    def __init__(self, writer: "str | PathLike[str] | SummaryWriter") -> None:
        named = isinstance(writer, (str, PathLike))
        self.writer: Any = SummaryWriter(fspath(writer)) if named else writer  # type: ignore[arg-type]

    def append(self, records: Iterable[Record]) -> None:
        """Write records as scalars; TensorBoard keeps them as float32."""
        for record in records:
            self.writer.add_scalar(scalar_name(record), record.value, record.step)

    def finding(self, finding: Finding) -> None:
        """Write a finding as a text under its code, at the step at which it was found first."""
        step = int(finding.details.get("first_step", 0))
        name = allowed(f"findings/{finding.code}/{finding.places[0]}").rstrip("/")
        self.writer.add_text(name, f"**{finding.severity.value} {finding.slug}**: {sentences(finding)}", step)

    def close(self, report: Path | None = None) -> None:
        """Copy the page beside the event files, and write out what is pending; the writer stays open."""
        if report is not None:
            copied = shutil.copy(report, Path(self.writer.log_dir) / "normscope.html")
            self.writer.add_text("normscope", f"The page of the scope: {copied}")
        self.writer.flush()
