"""What the sink writes, read back by TensorBoard's own reader."""

import math
import shutil

import pytest
import torch

from kit import sinks
from normscope.probes import SinkWarning

pytestmark = pytest.mark.extras


@pytest.fixture
def tensorboard():
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from normscope.integrations import tensorboard

    return tensorboard


def read(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


def texts(events):
    tags = events.Tags()["tensors"]
    return {tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(tag)] for tag in tags}


def test_records_are_scalars_at_their_steps(tensorboard, tmp_path):
    sink = tensorboard.TensorBoardSink(tmp_path / "logs")
    sink.append(sinks.RECORDS)
    sink.close(None)
    events = read(tmp_path / "logs")
    assert sorted(events.Tags()["scalars"]) == sorted(sinks.NAMES)
    assert [(e.step, e.value) for e in events.Scalars(sinks.NAMES[0])] == [(0, 0.25), (50, 1.75)]
    assert [(e.step, e.value) for e in events.Scalars(sinks.NAMES[1])] == [(0, 1.5), (50, 3.0)]
    assert all(math.isnan(e.value) for e in events.Scalars(sinks.NAMES[2]))


def test_findings_are_texts_and_the_page_lies_beside_the_events(tensorboard, tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    page = tmp_path / "page.html"
    page.write_text("the page")
    with SummaryWriter(str(tmp_path / "logs")) as writer:  # the training's own writer stays open
        sink = tensorboard.TensorBoardSink(writer)
        for finding in sinks.FINDINGS:
            sink.finding(finding)
        sink.close(page)
        writer.add_scalar("own", 1.0, 7)
    events = read(tmp_path / "logs")
    found = texts(events)
    assert found["findings/NS102/a.b/text_summary"] == [
        (50, "**error tiny-batch**: Batches of 2 [a.b]. [a.b] Use more.")
    ]
    assert {"findings/NS102/c_d/text_summary", "findings/NS102/text_summary", "normscope/text_summary"} <= set(found)
    assert [e.value for e in events.Scalars("own")] == [1.0]
    assert (tmp_path / "logs" / "normscope.html").read_text() == "the page"


def test_a_scope_fills_it_while_training(tensorboard, tmp_path):
    sink = tensorboard.TensorBoardSink(str(tmp_path / "logs"))
    plain, _ = sinks.trained([])
    parameters, scope = sinks.trained([sink])
    scope.close()
    assert parameters == plain
    events = read(tmp_path / "logs")
    read_back = {(tag, e.step): e.value for tag in events.Tags()["scalars"] for e in events.Scalars(tag)}
    expected = sinks.values(scope)
    assert read_back.keys() == expected.keys()
    for key, value in expected.items():
        assert read_back[key] == torch.tensor(value, dtype=torch.float32).item()
    assert "gradient-flow" in (tmp_path / "logs" / "normscope.html").read_text(encoding="utf-8")
    scope.close()  # once more does no harm


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard writes in a thread
def test_a_folder_that_is_deleted_ends_no_training(tensorboard, tmp_path):
    sink = tensorboard.TensorBoardSink(tmp_path / "logs")
    plain, _ = sinks.trained([])

    def between(step):
        if step == 2:
            shutil.rmtree(tmp_path / "logs")

    with pytest.warns(SinkWarning, match="TensorBoardSink"):
        parameters, scope = sinks.trained([sink], between=between, close=True)
    assert parameters == plain
    assert scope.records()["step"].n_unique() == 5
