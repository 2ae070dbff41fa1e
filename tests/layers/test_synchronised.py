"""Statistics of two and of four processes over gloo, with batches of unequal sizes and of none, are the whole's."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("_processes.py")


def run_processes(folder, *more, size=4):
    """Run processes and return what each reports."""
    out = folder / "out.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    logs = [folder / f"log{rank}" for rank in range(size)]
    with contextlib.ExitStack() as stack:
        processes = [
            subprocess.Popen(
                [sys.executable, WORKER, str(rank), str(size), folder / "rendezvous", out, *more],
                env=environment,
                stdout=stack.enter_context(log.open("w")),
                stderr=subprocess.STDOUT,
            )
            for rank, log in enumerate(logs)
        ]
        try:
            codes = [process.wait(240) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
    assert codes == [0] * size, "\n".join(log.read_text()[-3000:] for log in logs)
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    return run_processes(tmp_path_factory.mktemp("sync"))


STEPS = [
    "plain",
    "no-affine",
    "simple-average",
    "masked",
    "renorm",
    "accumulate",
    "activation",
    "uses-running",
    "second-order",
    "forward-mode",
    "torch.func",
]


@pytest.mark.parametrize("check", STEPS)
@pytest.mark.parametrize("processes", [2, 4])
def test_is_the_single_process_with_the_whole_batch(reports, processes, check):
    parts = [report[f"{processes}:{check}"] for report in reports[:processes]]
    assert all(parts)
    for part in parts:
        assert max(part.values()) < 1e-12, part


@pytest.mark.parametrize("processes", [2, 4])
def test_an_offset_costs_no_digits_in_float32(reports, processes):
    for report in reports[:processes]:
        assert max(report[f"{processes}:float32-offset"].values()) < 1e-6


@pytest.mark.parametrize("wrapped", ["ddp", "fsdp2"])
def test_data_parallel_training_is_training_on_the_whole_batch(reports, wrapped):
    for report in reports:
        assert max(report[f"4:{wrapped}"].values()) < 1e-12


def test_one_value_a_channel_in_all_processes_is_refused_by_all(reports):
    for report in reports:
        ours, torchs = report["refusals"]["said"]
        assert "more than 1 value per channel" in ours
        assert "GPU" in torchs  # torch's synchronised layer has nothing for the CPU
        assert report["refusals"]["shape"] == [1, 3]


def test_importing_the_layers_does_not_import_torchs_compiler(reports):
    """It takes as long as torch itself."""
    assert not any(report["compiler imported"] for report in reports)


@pytest.mark.long
def test_compiles_whole(tmp_path):
    for report in run_processes(tmp_path, "compile", size=2):
        assert max(report["compiled"].values()) < 1e-12
