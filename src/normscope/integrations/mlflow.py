"""MLflow: records as metrics, findings as tags, the page as an artifact."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from normscope._errors import UsageError
from normscope.integrations import allowed, missing, scalar_name, sentences
from normscope.records import Finding, Record

try:
    import mlflow
    from mlflow.entities import Metric
except ModuleNotFoundError as error:
    raise missing("mlflow") from error

_AT_ONCE = 1000  # the most metrics that one call may log
_LONGEST = 8000  # characters of a tag


class MlflowSink:
    """Shows what a scope reads in MLflow: one metric a quantity and site, at the step at which it was read.

    Args:
        run: A run, as ``mlflow.start_run`` returns it, or its id; None is the run that is active.

    Raises:
        UsageError: No run is given, and none is active.

    Example:
        >>> with mlflow.start_run():
        ...     scope = ns.watch(model, optimizer, sinks=[MlflowSink()])
    """

    def __init__(self, run: Any = None) -> None:
        run = mlflow.active_run() if run is None else run
        if run is None:
            raise UsageError("no run of MLflow is active: start one with mlflow.start_run(), or give MlflowSink its id")
        self.run_id: str = run if isinstance(run, str) else run.info.run_id
        self.client = mlflow.MlflowClient()

    def append(self, records: Iterable[Record]) -> None:
        """Log records as metrics; a database of MLflow's keeps infinities as the largest float."""
        now = int(time.time() * 1000)
        metrics = [Metric(scalar_name(record), record.value, now, record.step) for record in records]
        for first in range(0, len(metrics), _AT_ONCE):
            self.client.log_batch(self.run_id, metrics[first : first + _AT_ONCE])

    def finding(self, finding: Finding) -> None:
        """Set a tag, named by the finding's code and first place."""
        name = allowed(f"normscope.{finding.code}.{finding.places[0]}").rstrip(".")
        text = f"{finding.severity.value} {finding.slug}: {sentences(finding)}"
        self.client.set_tag(self.run_id, name, text[:_LONGEST])

    def close(self, report: Path | None = None) -> None:
        """Log the page as an artifact; the run stays open."""
        if report is not None:
            self.client.log_artifact(self.run_id, str(report), "normscope")
