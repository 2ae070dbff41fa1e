"""The page of a scope: one self-contained HTML file."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from normscope import checking, report
from normscope._errors import UsageError
from normscope.probes import AbstractProbe
from normscope.records import provenance
from normscope.report import counted
from normscope.seen._findings import findings_section
from normscope.seen._panels import sections_of

if TYPE_CHECKING:
    import polars


def write(
    path: str | PathLike[str],
    frame: "polars.DataFrame",
    *,
    model: str,
    probes: Sequence[AbstractProbe],
    steps: int,
    findings: checking.Findings | None = None,
) -> Path:
    """Write the page of a scope.

    Args:
        path: The HTML file to write.
        frame: The scope's records.
        model: Name of the model's class.
        probes: The scope's probes.
        steps: Number of training steps so far.
        findings: What its rules found; None for a scope without rules.

    Returns:
        The path written.

    Raises:
        UsageError: Nothing was recorded yet, and no rule has run.
        StoreError: The path cannot be written.
    """
    sections = [] if findings is None or not steps else [findings_section(findings, steps)]
    if frame.is_empty() and not sections:
        raise UsageError("nothing was recorded yet: run at least one `with scope.step(batch)` that is due")
    if not frame.is_empty():
        sections += sections_of(frame, probes)
    what = "the probes" if findings is None else "probes and rules" if probes else "the rules"
    return report.write(
        Path(path),
        title=f"What {what} saw: {model}",
        sections=sections,
        provenance=provenance.collect(),
        lede=f"{counted(frame.height, 'record')} of {counted(steps, 'training step')}."
        + ("" if findings is None else f" {counted(len(findings), 'finding')}."),
    )
