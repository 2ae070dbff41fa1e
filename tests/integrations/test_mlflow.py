"""What the sink logs in MLflow, in a database of its own, read back through MLflow's client."""

import math
from pathlib import Path

import pytest

from kit import sinks
from normscope._errors import UsageError
from normscope.probes import SinkWarning

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore", "error::normscope.probes.ProbeWarning")]


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A database for all tests: MLflow takes seconds to make its tables."""
    return tmp_path_factory.mktemp("mlflow") / "mlflow.db"


@pytest.fixture
def mlflow(database, tmp_path, monkeypatch):
    found = pytest.importorskip("mlflow", reason="MLflow is not installed")
    pytest.importorskip("sqlalchemy", reason="the database in which MLflow's runs are tested is not installed")
    monkeypatch.chdir(tmp_path)
    before = found.get_tracking_uri()
    found.set_tracking_uri(f"sqlite:///{database}")
    yield found
    while found.active_run():
        found.end_run()
    found.set_tracking_uri(before)


@pytest.fixture
def sink_of(mlflow):
    from normscope.integrations.mlflow import MlflowSink

    return MlflowSink


def read(mlflow, run_id):
    """Return {(metric, step): value} and the tags of a run."""
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    metrics = {(m.key, m.step): m.value for key in run.data.metrics for m in client.get_metric_history(run_id, key)}
    return metrics, run.data.tags


def test_records_are_metrics_at_their_steps(mlflow, sink_of):
    with mlflow.start_run() as run:
        sink = sink_of()  # the run that is active
        sink.append(sinks.RECORDS)
        sink.close(None)
    metrics, _ = read(mlflow, run.info.run_id)
    assert {name for name, _ in metrics} == set(sinks.NAMES)
    assert (metrics[sinks.NAMES[0], 0], metrics[sinks.NAMES[0], 50]) == (0.25, 1.75)
    assert (metrics[sinks.NAMES[1], 0], metrics[sinks.NAMES[1], 50]) == (1.5, 3.0)
    assert math.isnan(metrics[sinks.NAMES[2], 0])


def test_more_records_than_one_call_takes(mlflow, sink_of):
    records = [sinks.Record("scope", step, "p", f"site{i}", "norm", step + i) for step in range(3) for i in range(700)]
    with mlflow.start_run() as run:
        sink_of(run).append(records)
    client = mlflow.MlflowClient()
    assert len(client.get_run(run.info.run_id).data.metrics) == 700
    assert [m.value for m in client.get_metric_history(run.info.run_id, "p/norm/site699")] == [699, 700, 701]


def test_findings_are_tags_and_the_page_is_an_artifact(mlflow, sink_of, tmp_path):
    page = tmp_path / "scope.html"
    page.write_text("the page")
    with mlflow.start_run() as run:
        sink = sink_of(run.info.run_id)
        for finding in sinks.FINDINGS:
            sink.finding(finding)
        sink.close(page)
    _, tags = read(mlflow, run.info.run_id)
    assert tags["normscope.NS102.a.b"] == "error tiny-batch: Batches of 2 [a.b]. [a.b] Use more."
    assert {"normscope.NS102.c_d", "normscope.NS102"} <= set(tags)
    found = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path="normscope/scope.html")
    assert Path(found).read_text() == "the page"


def test_a_scope_fills_it_while_training(mlflow, sink_of):
    plain, _ = sinks.trained([])
    with mlflow.start_run() as run:
        parameters, scope = sinks.trained([sink_of()])
        scope.close()
    assert parameters == plain
    metrics, _ = read(mlflow, run.info.run_id)
    assert metrics == pytest.approx(sinks.values(scope))
    assert [f.path for f in mlflow.MlflowClient().list_artifacts(run.info.run_id, "normscope")] == [
        "normscope/scope.html"
    ]


def test_a_run_that_is_deleted_ends_no_training(mlflow, sink_of):
    plain, _ = sinks.trained([])
    run = mlflow.MlflowClient().create_run("0")

    def between(step):
        if step == 2:
            mlflow.delete_run(run.info.run_id)

    with pytest.warns(SinkWarning, match="MlflowSink"):
        parameters, scope = sinks.trained([sink_of(run)], between=between, close=True)
    assert parameters == plain
    assert scope.records()["step"].n_unique() == 5


def test_without_a_run_it_is_said_how_to_start_one(sink_of):
    with pytest.raises(UsageError, match=r"mlflow\.start_run\(\)"):
        sink_of()
