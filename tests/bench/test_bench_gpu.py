"""The table of what batch norm costs on a GPU: that it is made rightly. What the numbers are is no test's matter."""

import json
from dataclasses import asdict

import pytest
import torch

from normscope._errors import UsageError
from normscope.bench import gpu

TINY = {"tiny": (4, 3, 5, 6)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device_it_refuses_in_one_line():
    with pytest.raises(UsageError, match="no CUDA device to measure on") as refused:
        gpu.measure_gpu()
    assert "\n" not in str(refused.value)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UsageError, match="rounds=0"):
        gpu.measure_gpu(rounds=0)
    with pytest.raises(UsageError, match="no type 'int8'"):
        gpu.measure_gpu(dtypes=["int8"])
    with pytest.raises(UsageError, match="no layout 'sideways'"):
        gpu.measure_gpu(formats=["sideways"])


def test_the_shapes_are_those_promised():
    assert len(gpu.SHAPES) == 8
    assert all(64 <= shape[0] <= 256 for shape in gpu.SHAPES.values())
    assert {name.split(",")[0] for name in gpu.SHAPES} == {"VGG-16", "ResNet-50"}


def test_every_input_work_and_candidate_has_a_row():
    told = []
    candidates = {name: make for name, make in gpu.CANDIDATES.items() if name != gpu.COMPILED}
    chosen = 3, TINY, ["float32", "bfloat16"], list(gpu.FORMATS)
    # white box: without a GPU, what the public function refuses is run on the CPU
    found = gpu._measure(torch.device("cpu"), lambda *said: told.append(said), *chosen, candidates)
    keys = {(row.dtype, row.layout, row.work, row.candidate) for row in found}
    assert len(keys) == len(found) == 2 * 2 * 2 * 2
    assert told[0] == ("tiny, float32, contiguous", 0, 4)
    assert told[-1][1:] == (4, 4)
    for row in found:
        assert 0 < row.low <= row.ms <= row.high
        assert row.share == pytest.approx(row.floor_ms / row.ms)
        if row.candidate == gpu.EAGER:
            assert row.speedup == 1
    assert json.loads(json.dumps([asdict(row) for row in found]))[0]["input"] == "tiny"


def test_candidates_do_the_same_work():
    x, g = torch.randn(4, 3, 5, 6, requires_grad=True), torch.randn(4, 3, 5, 6)
    modules = {name: gpu.CANDIDATES[name](3) for name in (gpu.OURS, gpu.EAGER)}
    acts, floor = gpu._acts(modules, x, g, gpu.BOTH)  # white box: on the CPU, likewise
    for ours, eager in zip(acts[gpu.OURS](), acts[gpu.EAGER](), strict=True):
        torch.testing.assert_close(ours, eager)
    acts, floor = gpu._acts(modules, x, g, gpu.FORWARD)
    torch.testing.assert_close(acts[gpu.OURS](), acts[gpu.EAGER]())
    assert acts[floor]() is None


def test_rows_hold_the_numbers_that_were_taken():
    row = gpu._row(  # white box: on the CPU, likewise
        ("a", (1, 2), "float32", "contiguous", "forward", "x"), 8_000_000, [1.0, 2, 3], [0.5, 1, 9], [2.0, 8, 6]
    )
    assert (row.low, row.ms, row.high) == (1.5, 2, 2.5)
    assert (row.floor_ms, row.share, row.speedup) == (1, 0.5, 2)
    assert row.gigabytes_per_second == pytest.approx(4)
