"""What the sink logs in W&B's offline mode, read back from the run's own file."""

import math

import pytest

from kit import sinks
from kit.wandb_file import read
from normscope.probes import SinkWarning

pytestmark = [pytest.mark.extras, pytest.mark.filterwarnings("ignore", "error::normscope.probes.ProbeWarning")]


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    found = pytest.importorskip("wandb", reason="W&B is not installed")
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield found
    found.finish()


@pytest.fixture
def run(wandb, tmp_path):
    return wandb.init(project="tests", mode="offline", dir=tmp_path, settings={"x_disable_stats": True})


@pytest.fixture
def sink(run):
    from normscope.integrations.wandb import WandbSink

    return WandbSink(run)


def test_records_are_rows_over_their_own_steps(run, sink):
    sink.append(sinks.RECORDS)
    sink.close(None)
    rows, _, _ = read(run)
    assert [row["normscope/step"] for row in rows] == [0, 50]
    assert [row[sinks.NAMES[0]] for row in rows] == [0.25, 1.75]
    assert [row[sinks.NAMES[1]] for row in rows] == [1.5, 3.0]
    assert all(math.isnan(float(row[sinks.NAMES[2]])) for row in rows)


@pytest.mark.parametrize("numbered", [True, False])
@pytest.mark.parametrize("seldom", [1, 2])
def test_rows_of_the_training_stay_as_they_are(wandb, run, sink, numbered, seldom):
    """A training that logs itself, with steps of its own or without, as often as the scope reads or less often."""

    def between(step):
        if step % seldom == 0:
            run.log({"own": step}, step=step) if numbered else run.log({"own": step})

    _, scope = sinks.trained([sink], steps=6, between=between)
    scope.close()
    rows, _, _ = read(run)
    assert [row["own"] for row in rows if "own" in row] == list(range(0, 6, seldom))
    if numbered:
        assert [row["_step"] for row in rows if "own" in row] == list(range(0, 6, seldom))
    read_back = {
        (key, row["normscope/step"]): value
        for row in rows
        for key, value in row.items()
        if key not in ("own", "_step", "normscope/step")
    }
    assert read_back == pytest.approx(sinks.values(scope))


def test_findings_are_alerts_and_the_page_is_an_artifact(run, sink, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("the page")
    for finding in sinks.FINDINGS:
        sink.finding(finding)
    sink.close(page)
    _, alerts, files = read(run)
    assert [level for _, _, level in alerts] == ["ERROR", "WARN", "INFO"]
    assert alerts[0][:2] == ("NS102 tiny-batch", "Batches of 2 [a.b]. [a.b] Use more.")
    assert files == [("normscope.html", len("the page"))]


def test_a_run_that_is_finished_ends_no_training(run, sink):
    plain, _ = sinks.trained([])

    def between(step):
        if step == 2:
            run.finish()

    with pytest.warns(SinkWarning, match="WandbSink"):
        parameters, scope = sinks.trained([sink], between=between, close=True)
    assert parameters == plain
    assert scope.records()["step"].n_unique() == 5
