"""Weights & Biases: records as scalars over their own steps, findings as alerts, the page as an artifact."""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from normscope.integrations import missing, scalar_name, sentences
from normscope.records import Finding, Record, Severity

try:
    import wandb
except ModuleNotFoundError as error:
    raise missing("wandb") from error

_LEVELS = {Severity.ERROR: "ERROR", Severity.WARNING: "WARN", Severity.INFO: "INFO"}
_STEP = "normscope/step"


class WandbSink:
    """Shows what a scope reads in W&B, over ``normscope/step``, the step of training at which it was read.

    Values join the row that the training's own ``run.log`` fills next, so that the numbers of the training's rows stay
    as they are. A row is begun only where the training has logged nothing since the last values.

    Args:
        run: What ``wandb.init`` returned; also with ``mode="offline"``.

    Example:
        >>> scope = ns.watch(model, optimizer, sinks=[WandbSink(wandb.init(project="mine"))])
    """

    def __init__(self, run: Any) -> None:
        self.run = run
        self._filled = -1  # the last row that values have joined
        self._groups: set[str] = set()
        run.define_metric(_STEP, hidden=True)

    def append(self, records: Iterable[Record]) -> None:
        """Log records, one row a step."""
        rows: dict[int, dict[str, float]] = {}
        for record in records:
            name = scalar_name(record)
            rows.setdefault(record.step, {_STEP: record.step})[name] = record.value
            if (group := name.partition("/")[0]) not in self._groups:
                self._groups.add(group)
                self.run.define_metric(f"{group}/*", step_metric=_STEP)
        self.run.log({}, commit=False)  # raises at once where the run is finished; its ``step`` is waited for in vain
        for row in rows.values():
            if self.run.step == self._filled:
                self.run.log({}, commit=True)
            self.run.log(row, commit=False)
            self._filled = self.run.step

    def finding(self, finding: Finding) -> None:
        """Send an alert."""
        title = f"{finding.code} {finding.slug}"
        # W&B drops alerts of one title that follow one another within a minute, unless it is told to wait less.
        self.run.alert(title, sentences(finding), _LEVELS[finding.severity], wait_duration=timedelta(milliseconds=1))

    def close(self, report: Path | None = None) -> None:
        """Log the page as an artifact; the run stays open."""
        if report is not None:
            page = wandb.Artifact(f"normscope-{self.run.id}", type="report")
            page.add_file(str(report), name="normscope.html")
            self.run.log_artifact(page)
