"""What `normscope bench layers` measures, in small; no timing is judged."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from normscope._errors import UsageError
from normscope.bench import _timing, _training_steps, layers, layers_page  # white box: so that it takes seconds


def shallow(model, norm, plain):
    """A network in place of the deep ones; these are built by `test_the_networks_of_all_arms_are_the_same_function`."""
    convolutions = nn.Conv2d(3, 4, 3), norm(4), nn.Conv2d(4, 4, 3), plain(4)
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(_timing, "SECONDS", 0.0)
    monkeypatch.setattr(_timing, "LEAST_ROUNDS", 3)
    monkeypatch.setattr(_timing, "MOST_ROUNDS", 3)
    monkeypatch.setattr(layers, "SHAPES", ((8, 4), (4, 3, 6, 6)))
    monkeypatch.setattr(_training_steps, "_BATCH", {"vgg": 2, "resnet18": 2})
    monkeypatch.setattr(_training_steps, "_SECONDS", 0.0)
    monkeypatch.setattr(_training_steps, "build", shallow)

    def child(job):
        if job["work"] == "layers":
            return layers.measure_shape(tuple(job["shape"]), job["allocator"])
        if job["work"] == "step":
            return _training_steps.measure_step(job["model"], job["kind"])
        return _training_steps.measure_memory(job["model"], job["arm"])

    monkeypatch.setattr(layers, "measure_apart", child)


def test_all_cases_are_measured_and_told(quickly):
    told = []
    result = layers.measure(compiled=False, progress=lambda *said: told.append(said))
    by_case = {
        (str(row["shape"]), row["layout"], row["dtype"], row["threads"], row["allocator"]) for row in result["rows"]
    }
    threads = len({1, torch.get_num_threads()})
    assert len(by_case) == len(result["rows"]) == 2 * threads * 2 * (1 + 2)
    assert all(
        found["low"] <= found["median"] <= found["high"] for row in result["rows"] for found in row["ratios"].values()
    )
    assert len(result["steps"]) == 6
    assert len(result["memory"]) == 6
    assert [done for _, done, _ in told] == list(range(told[0][2]))
    assert json.loads(json.dumps(result))["kernel"] == result["kernel"]
    page = layers_page.markdown(result)
    assert page.count("| (4, 3, 6, 6) | channels_last | bf16 |") == 2 * threads
    assert "## In a whole training step" in page
    assert f"All {len(result['rows'])} cases together" in page
    assert not torch.backends.cpu.get_cpu_capability().startswith("AVX") or "L2 " in page
    assert "## Peak memory" in page
    assert len(layers_page.terminal(result)[0][1]) == len(result["rows"])


def test_a_job_has_a_process_of_its_own():
    job = {"work": "layers", "shape": [4, 3], "allocator": "recycled", "compiled": False}
    code = "from normscope.bench import _timing, layers; _timing.SECONDS = 0.0; layers.serve()"
    ran = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(job), capture_output=True, text=True, check=True
    )
    assert {row["allocator"] for row in json.loads(ran.stdout)} == {"recycled"}


def test_ratios_are_of_one_round():
    found = _timing.ratio({"a": [2.0, 40.0, 6.0, 8.0], "b": [1.0, 20.0, 3.0, 4.0]}, "a", "b")
    assert found == {"median": 2.0, "low": 2.0, "high": 2.0}


def test_a_missed_bound_is_marked():
    row = {"shape": (8, 4, 2, 2), "layout": "contiguous", "dtype": "float32", "allocator": "recycled", "threads": 1}
    ratio = {"median": 3.9, "low": 3.0, "high": 5.0}
    # white box: the words of one row
    assert layers_page._verdict(row | {"ratios": {"torch / ours": ratio}}) == ", below 4"
    assert layers_page._verdict(row | {"ratios": {"torch / ours": ratio | {"median": 4.1}}}) == ""
    assert layers_page._verdict(row | {"allocator": "default", "ratios": {"torch / ours": ratio}}) == ""


@pytest.mark.parametrize("norm", ["_torchs", "_ours", "_torchs_leaky", "_ours_leaky", "_in_place"])
def test_the_networks_of_all_arms_are_the_same_function(norm):
    x = torch.randn(4, 3, 32, 32)
    twin = {"_ours": "_torchs", "_ours_leaky": "_torchs_leaky", "_in_place": "_torchs_leaky"}.get(norm, norm)
    for model in ("vgg", "resnet18"):
        outputs = []
        for name in (norm, twin):
            torch.manual_seed(0)
            made = getattr(_training_steps, name)
            outputs.append(_training_steps.build(model, made, _training_steps._plain_of(made))(x))
        torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-4)


def test_wrong_options_are_refused_in_one_line():
    with pytest.raises(UsageError, match="no shape"):
        layers.measure(only="(3, 3, 3)")
    with pytest.raises(UsageError, match="no allocator 'jemalloc'"):
        layers.measure(allocators=["jemalloc"])


def test_ratios_are_of_the_times_that_they_name():
    """White box: the times are planted, for those of a machine prove nothing."""
    times = {
        "torch": [8.0, 16.0, 8.0],
        "ours": [2.0, 4.0, 2.0],
        "ours forward": [0.5, 1.0, 0.5],
        "torch forward": [3.0, 3.0, 3.0],
        "torch in place": [6.0, 12.0, 6.0],
        "torch BN": [5.0, 10.0, 5.0],
        "ours BN": [1.0, 2.0, 1.0],
        "copy": [0.25, 0.5, 0.25],
        "add": [0.75, 1.5, 0.75],
        "torch compiled": [4.0, 8.0, 4.0],
        "ours compiled": [1.0, 2.0, 1.0],
    }
    found = layers._summary(times)  # white box: times that are planted, not taken
    assert {name: ratio["median"] for name, ratio in found["ratios"].items()} == {
        "torch / ours": 4,
        "torch in place / ours": 3,
        "torch BN / ours BN": 5,
        "copy / forward": 0.5,
        "add / backward": 0.5,  # of the backward alone: 2 less 0.5
        "torch / memory": 8,  # of a copy and an addition: 1
        "torch compiled / ours": 2,
        "ours compiled / ours": 0.5,
        "torch / ours compiled": 8,
    }
    assert found["ms"]["torch"] == 8000


def test_the_page_tells_the_mean_and_the_least_of_all_cases():
    rows = [{"ratios": {"torch / ours": {"median": median}}} for median in (1.5, 6.0)]
    assert layers_page.overall({"rows": rows}) == (
        "All 2 cases together: 3.00 times torch (geometric mean), 1.50 at least.\n"
    )


def test_the_share_of_batch_norm_is_what_goes_when_it_is_taken_out(monkeypatch):
    monkeypatch.setattr(_training_steps, "_BATCH", {"vgg": 2})
    planted = {"torch": [10.0, 20.0, 10.0], "ours": [8.0, 16.0, 8.0], "none": [6.0, 12.0, 6.0]}
    monkeypatch.setattr(_training_steps, "rounds", lambda acts, clock, seconds: {name: planted[name] for name in acts})
    found = _training_steps.measure_step("vgg", "float32")
    assert found["share"] == pytest.approx({"torch": 0.4, "ours": 0.25})
    assert found["torch / ours"]["median"] == pytest.approx(1.25)
    assert found["ms"] == {"torch": 10000, "ours": 8000, "none": 6000}
    assert found["batch"] == 2


def test_rounds_are_interleaved_and_stop_in_time(monkeypatch):
    clock = iter(float(tick) for tick in range(10_000))
    calls = []
    acts = {name: lambda name=name: calls.append(name) for name in "abc"}
    monkeypatch.setattr(_timing, "LEAST_ROUNDS", 5)
    monkeypatch.setattr(_timing, "MOST_ROUNDS", 9)
    times = _timing.rounds(acts, lambda: next(clock), seconds=-1.0)  # no time: only as many as there must be
    assert {name: len(taken) for name, taken in times.items()} == {"a": 5, "b": 5, "c": 5}
    assert {taken for all_taken in times.values() for taken in all_taken} == {1.0}
    warm, timed = calls[:6], calls[6:]
    assert sorted(warm) == list("aabbcc")
    orders = [tuple(timed[start : start + 3]) for start in range(0, len(timed), 3)]
    assert all(sorted(order) == list("abc") for order in orders)
    assert len(set(orders)) > 1
    times = _timing.rounds(acts, lambda: next(clock), seconds=1e9)
    assert len(times["a"]) == 9
