"""The machine that runs studies: same records however it is run, no word without a difference."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from polars.testing import assert_frame_equal

from kit import runner_studies
from normscope import studies
from normscope._errors import DataError, StoreError, UsageError
from normscope.records import Outcome
from normscope.records.store import Store
from normscope.stats import TWO_LOOKS_LEVEL
from normscope.studies.runs import Run, run

HERE = Path(__file__).parent


def frame(out: Path, study: str = "null"):
    return Store.open(out / study).frame()


@pytest.fixture
def log(tmp_path, monkeypatch) -> Path:
    path = tmp_path / "executed.log"
    path.touch()
    monkeypatch.setenv("RUNNER_LOG", str(path))
    return path


def test_equal_arms_leave_nothing_to_say(tmp_path):
    verdict = run(runner_studies.Null(), out=tmp_path, seeds=6, workers=1)
    assert (verdict.outcome, verdict.p_value) == (Outcome.NOT_MEASURABLE, None)
    assert (verdict.effect.point, verdict.effect.low, verdict.effect.high) == (0, 0, 0)


@pytest.mark.parametrize("seeds", [1, 2, 10])
def test_arms_that_differ_by_chance_do_not_hold(tmp_path, seeds):
    verdict = run(runner_studies.Twins(), out=tmp_path, seeds=seeds, workers=1)
    assert verdict.outcome is not Outcome.HOLDS
    assert verdict.effect.n == seeds


def test_one_seed_is_not_measurable(tmp_path):
    verdict = run(runner_studies.Twins(), out=tmp_path, seeds=1, workers=1)
    assert verdict.outcome is Outcome.NOT_MEASURABLE
    assert verdict.effect.n == 1


def test_records_do_not_depend_on_workers_or_repetition(tmp_path):
    verdicts = [run(runner_studies.Null(), out=tmp_path / str(w), seeds=2, workers=w) for w in (1, 2)]
    again = run(runner_studies.Null(), out=tmp_path / "again", seeds=2, workers=1)
    assert verdicts[0] == verdicts[1] == again
    assert_frame_equal(frame(tmp_path / "1"), frame(tmp_path / "2"), check_exact=True)
    assert_frame_equal(frame(tmp_path / "1"), frame(tmp_path / "again"), check_exact=True)


def test_records_of_seeds_run_together_depend_on_neither_workers_nor_seeds_nor_what_was_complete(tmp_path, log):
    for workers in (1, 2):
        run(runner_studies.Together(), out=tmp_path / str(workers), seeds=7, workers=workers)
    run(runner_studies.Together(), out=tmp_path / "by and by", seeds=1, workers=1)
    log.write_text("")
    for seeds in (3, 7):
        run(runner_studies.Together(), out=tmp_path / "by and by", seeds=seeds, workers=1)
    found = {
        path.name: frame(path, "together").sort("cell", "step", "name") for path in tmp_path.iterdir() if path.is_dir()
    }
    assert_frame_equal(found["1"], found["2"], check_exact=True)
    assert_frame_equal(found["1"], found["by and by"], check_exact=True)
    # The second look ran seeds 0 to 4 for the sake of 1 and 2, the third again for 3 and 4, and 5 to 9 for 5 and 6.
    # Each at two learning rates; and six seeds of the other arm alone.
    assert len(log.read_text().split()) == 2 * (15 + 6)
    store = Store.open(tmp_path / "1" / "together")
    assert sorted({cell.seed for cell in store.cells()}) == list(range(7))


def test_records_do_not_depend_on_the_callers_threads_or_random_state(tmp_path):
    threads = torch.get_num_threads()
    state = torch.random.get_rng_state()
    try:
        run(runner_studies.Unseeded(), out=tmp_path / "a", seeds=2, workers=1)
        assert torch.equal(torch.random.get_rng_state(), state)
        torch.set_num_threads(2)
        torch.rand(3)
        run(runner_studies.Unseeded(), out=tmp_path / "b", seeds=2, workers=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
        torch.random.set_rng_state(state)
    assert_frame_equal(frame(tmp_path / "a", "unseeded"), frame(tmp_path / "b", "unseeded"), check_exact=True)


def test_running_again_runs_nothing(tmp_path, log):
    first = run(runner_studies.Null(), out=tmp_path, seeds=2, workers=1)
    assert len(log.read_text().split()) == 8
    assert run(runner_studies.Null(), out=tmp_path, seeds=2, workers=1) == first
    assert len(log.read_text().split()) == 8


def test_more_seeds_run_only_the_new_ones_and_fewer_judge_only_those_asked_for(tmp_path, log):
    run(runner_studies.Twins(), out=tmp_path, seeds=2, workers=1)
    assert run(runner_studies.Twins(), out=tmp_path, seeds=4, workers=1).effect.n == 4
    executed = log.read_text().split()
    assert len(executed) == len(set(executed)) == 16
    assert run(runner_studies.Twins(), out=tmp_path, seeds=2, workers=1).effect.n == 2


def test_progress_counts_every_cell_once(tmp_path):
    seen = []
    run(runner_studies.Null(), out=tmp_path, seeds=2, workers=1, progress=lambda *args: seen.append(args))
    assert [(done, total) for done, total, _ in seen] == [(done, 8) for done in range(9)]
    assert seen[0][2] is None
    assert len({cell.id for *_, cell in seen[1:]}) == 8
    resumed = []
    run(runner_studies.Null(), out=tmp_path, seeds=2, workers=1, progress=lambda *args: resumed.append(args))
    assert resumed == [(8, 8, None)]


def children(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == pid:
                found += [int(entry.name), *children(int(entry.name))]
    return found


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads processes from /proc")
@pytest.mark.parametrize(
    ("workers", "how", "name"),
    [
        (1, signal.SIGKILL, "null"),
        pytest.param(2, signal.SIGKILL, "null", marks=pytest.mark.long),
        pytest.param(2, signal.SIGINT, "together", marks=pytest.mark.long),
    ],
)
def test_killed_and_run_again_equals_uninterrupted(tmp_path, log, workers, how, name):
    seeds, cells = 3, 12
    environment = dict(os.environ, RUNNER_HOLD="4", PYTHONPATH=os.pathsep.join([str(HERE.parent), *sys.path]))
    command = [sys.executable, "-m", "kit.runner_studies", name, str(tmp_path / "killed"), str(seeds), str(workers)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        # All cells but the first four are held: however slow the machine is, the run cannot end before it is killed.
        limit = time.monotonic() + 240
        while len(list((tmp_path / "killed" / name).glob("cell-*.json"))) < 3:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < limit, "three cells took longer than four minutes"
            time.sleep(0.02)
        below = children(process.pid)
        if how is signal.SIGINT:
            os.killpg(process.pid, how)  # as a terminal does
        else:
            os.kill(process.pid, how)
        process.wait(120)
        limit = time.monotonic() + 120
        while any(alive(pid) for pid in below):
            assert time.monotonic() < limit, "workers outlive the process that started them"
            time.sleep(0.05)
    finally:
        if process.poll() is None:
            process.kill()
    done = Store.open(tmp_path / "killed" / name).completed()
    assert 3 <= len(done) < cells
    assert set(log.read_text().split()) >= done
    seen = []
    study = runner_studies.STUDIES[name]()
    resumed = run(
        study, out=tmp_path / "killed", seeds=seeds, workers=workers, progress=lambda *args: seen.append(args)
    )
    assert seen[0] == (len(done), cells, None)
    executed = [cell.id for *_, cell in seen[1:]]
    assert len(executed) == cells - len(done)
    assert not set(executed) & done
    assert resumed == run(study, out=tmp_path / "whole", seeds=seeds, workers=1)
    assert_frame_equal(frame(tmp_path / "killed", name), frame(tmp_path / "whole", name), check_exact=True)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failing_cell_fails_the_run_and_keeps_what_was_complete(tmp_path, workers):
    with pytest.raises(ZeroDivisionError, match="planted"):
        run(runner_studies.Broken(), out=tmp_path, seeds=3, workers=workers)
    kept = Run(runner_studies.Broken(), Store.open(tmp_path / "broken"))
    assert 0 < len(kept.store.completed()) <= 8
    if workers == 1:
        assert kept.evidence().seeds == (0, 1)


def test_incomplete_seeds_are_not_judged(tmp_path):
    run(runner_studies.Null(), out=tmp_path, seeds=3, workers=1)
    store = Store.open(tmp_path / "null")
    lost = next(cell for cell in store.cells() if cell.seed == 1)
    for path in (tmp_path / "null").glob(f"*{lost.id}*"):
        path.unlink()
    kept = Run(runner_studies.Null(), Store.open(tmp_path / "null"))
    assert kept.evidence().seeds == (0, 2)
    assert kept.verdict().effect.n == 2
    for path in (tmp_path / "null").glob("cell-*"):
        path.unlink()
    with pytest.raises(DataError, match="no seed is complete"):
        Run(runner_studies.Null(), Store.open(tmp_path / "null")).verdict()


def test_an_unclear_run_is_extended_once_at_the_corrected_level(tmp_path):
    verdict = run(runner_studies.Twins(), out=tmp_path, seeds=3, workers=1, extend=True)
    assert verdict.effect.n == 6
    assert verdict.effect.level == pytest.approx(TWO_LOOKS_LEVEL)
    found = Run(runner_studies.Twins(), Store.open(tmp_path / "twins"))
    assert found.asked() == (3,)
    assert "--seeds 3 --device cpu --extend" in found.command()
    with pytest.raises(StoreError, match="level"):
        run(runner_studies.Twins(), out=tmp_path, seeds=3, workers=1)


@pytest.mark.parametrize(
    ("unclear", "asked"),
    [((), (6,)), ((6,), (6,)), ((3,), (6, 3)), ((3, 6), (3,))],
    ids=["at once", "at six, so twelve are still to come", "perhaps after three", "after three"],
)
def test_the_seeds_that_were_asked_for_are_told_from_the_seeds_that_are_there(tmp_path, monkeypatch, unclear, asked):
    run(runner_studies.Twins(), out=tmp_path, seeds=3, workers=1, extend=True)
    judge = runner_studies.Twins.judge

    def planted(study, evidence):
        outcome, p = (Outcome.UNCLEAR, 0.5) if len(evidence.seeds) in unclear else (Outcome.HOLDS, 1e-6)
        return dataclasses.replace(judge(study, evidence), outcome=outcome, p_value=p)

    monkeypatch.setattr(runner_studies.Twins, "judge", planted)
    assert Run(runner_studies.Twins(), Store.open(tmp_path / "twins")).asked() == asked


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"seeds": 0}, UsageError, "--seeds"),
        ({"workers": 0}, UsageError, "--workers"),
        ({"preset": "huge"}, UsageError, "quick or full"),
        ({"device": "no-such-device"}, UsageError, "no-such-device"),
        ({"data": "no/such/path"}, DataError, "no such file"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(tmp_path, options, error, says):
    with pytest.raises(error, match=says) as caught:
        run(runner_studies.Null(), out=tmp_path / "out", **({"seeds": 1} | options))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_another_preset_needs_another_folder(tmp_path):
    run(runner_studies.Null(), out=tmp_path, seeds=1, workers=1)
    with pytest.raises(StoreError):
        run(runner_studies.Null(), out=tmp_path, seeds=1, workers=1, preset="full")


def test_out_that_is_a_file(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(StoreError):
        run(runner_studies.Null(), out=tmp_path / "out", seeds=1, workers=1)


def test_load_says_where_nothing_lies(tmp_path):
    with pytest.raises(StoreError, match="holds neither the run of a study"):
        studies.load(tmp_path)


def test_a_run_of_an_unknown_study_is_named(tmp_path):
    run(runner_studies.Null(), out=tmp_path, seeds=1, workers=1)
    with pytest.raises(UsageError, match="null"):
        studies.load(tmp_path)
