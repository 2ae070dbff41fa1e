"""Killed at any moment, a store holds whole cells and nothing half; two writers do not hurt each other."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kit import cell_writer
from kit.cell_writer import CONFIG, ROWS, cell_of, records_of
from normscope.records import Store, files as _files

WRITER = cell_writer.__file__


class Crash(BaseException):
    """The process dies here, as far as the folder is concerned."""


def crash_at(patch: pytest.MonkeyPatch, moment: int) -> None:
    """Let the step with this number, of all steps that touch the disk, be the last; nothing is tidied up after it."""
    steps = iter(range(10**6))

    def dying(step):
        def run(*args, **kwargs):
            if next(steps) == moment:
                raise Crash
            return step(*args, **kwargs)

        return run

    patch.setattr(_files, "fill", dying(torn(_files.fill)))
    patch.setattr(_files, "sync", dying(_files.sync))
    patch.setattr(os, "replace", dying(os.replace))
    patch.setattr(os, "link", dying(os.link))
    patch.setattr(Path, "unlink", lambda *_, **__: None)


def torn(write):
    """Leave half a file first, so that a crash during the write leaves one."""

    def run(path, content):
        path.write_bytes(content[: len(content) // 2])
        write(path, content)

    return run


def half(path: Path) -> None:
    path.write_bytes(b"PAR1 half a file")


def check_whole(folder: Path, seeds: set[int]) -> None:
    """Demand that exactly these seeds' cells are complete, each with all of its records."""
    store = Store.open(folder)
    assert {cell.seed for cell in store.cells()} == seeds
    frame = store.frame()
    assert frame.height == ROWS * len(seeds)
    for cell in store.cells():
        values = frame.filter(frame["seed"] == cell.seed)["value"].to_list()
        assert values == [record.value for record in records_of(cell)]


def dead_pid() -> int:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


def test_a_crash_between_any_two_steps_leaves_whole_cells(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    for seed in (0, 1):
        Store.create(whole, CONFIG).write_cell(cell_of(seed), records_of(cell_of(seed)), wall_s=0)
    moment, finished = 0, False
    while not finished:
        folder = tmp_path / str(moment)
        store = Store.create(folder, CONFIG)
        store.write_cell(cell_of(0), records_of(cell_of(0)), wall_s=0)
        with pytest.MonkeyPatch.context() as patch:
            crash_at(patch, moment)
            try:
                store.write_cell(cell_of(1), records_of(cell_of(1)), wall_s=0)
                finished = True
            except Crash:
                pass
        done = (folder / f"cell-{cell_of(1).id}.json").exists()
        check_whole(folder, {0, 1} if done else {0})
        # The next start finds the dead process's leavings, removes them, and completes the run.
        for entry in folder.glob(".tmp-*"):
            entry.rename(folder / entry.name.replace(f"-{os.getpid()}-", f"-{dead_pid()}-"))
        again = Store.create(folder, CONFIG)
        assert not list(folder.glob(".tmp-*"))
        assert again.write_cell(cell_of(1), records_of(cell_of(1)), wall_s=0) != done
        assert again.frame().equals(Store.open(whole).frame())
        moment += 1
    assert moment > 8  # part and mark: write, sync, rename, sync of the folder, each


@pytest.mark.parametrize("moment", range(4))
def test_a_crash_while_a_run_is_started(tmp_path: Path, moment: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        crash_at(patch, moment)
        with pytest.raises(Crash):
            Store.create(tmp_path / "run", CONFIG)
    assert Store.create(tmp_path / "run", CONFIG).completed() == set()


def test_crash_check_catches_a_writer_without_rename(tmp_path: Path) -> None:
    def careless(path, write, *, replace=True):
        half(path)
        raise Crash

    store = Store.create(tmp_path / "run", CONFIG)
    store.write_cell(cell_of(0), records_of(cell_of(0)), wall_s=0)
    (tmp_path / "run" / f"cell-{cell_of(1).id}.json").write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_files, "write_whole", careless)
        with pytest.raises(Crash):
            store.write_cell(cell_of(1), records_of(cell_of(1)), wall_s=0)
    with pytest.raises(Exception, match="damaged"):
        check_whole(tmp_path / "run", {0})


def start(folder: Path, first: int, stop: int, stride: int = 1) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    words = [sys.executable, WRITER, str(folder), str(first), str(stop), str(stride)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, env=environment)


def test_kill_nine(tmp_path: Path) -> None:
    folder, rng, cells = tmp_path / "run", random.Random(0), 120
    kills = 0
    for _ in range(4):
        writer = start(folder, 0, cells)
        assert writer.stdout is not None
        writer.stdout.readline()
        before = len(list(folder.glob("cell-*.json")))
        while writer.poll() is None and len(list(folder.glob("cell-*.json"))) < before + 3:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.01))
        writer.send_signal(signal.SIGKILL)
        kills += writer.wait() == -signal.SIGKILL
        writer.stdout.close()
        check_whole(folder, {cell.seed for cell in Store.open(folder).cells()})
    assert kills >= 2
    writer = start(folder, 0, cells)
    assert writer.wait() == 0
    assert writer.stdout is not None
    writer.stdout.close()
    check_whole(folder, set(range(cells)))
    assert not list(folder.glob(".tmp-*"))
    assert len(list(folder.iterdir())) == 1 + 2 * cells
    straight = Store.create(tmp_path / "straight", CONFIG)
    for seed in reversed(range(cells)):
        straight.write_cell(cell_of(seed), records_of(cell_of(seed)), wall_s=0)
    assert Store.open(folder).frame().equals(straight.frame())


def test_two_processes_write_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    writers = [start(folder, first, 40, 2) for first in (0, 1)] + [start(folder, 0, 40)]
    for writer in writers:
        assert writer.wait() == 0
        assert writer.stdout is not None
        writer.stdout.close()
    check_whole(folder, set(range(40)))
    assert not list(folder.glob(".tmp-*"))


def test_a_living_writers_temporary_file_is_left_alone(tmp_path: Path) -> None:
    Store.create(tmp_path, {})
    host = _files._host()  # white box: the name of this machine in those of temporary files
    mine = tmp_path / f".tmp-{host}-{os.getpid()}-{'0' * 32}"
    dead = tmp_path / f".tmp-{host}-{dead_pid()}-{'1' * 32}"
    away_new = tmp_path / f".tmp-elsewhere-{dead_pid()}-{'2' * 32}"
    away_old = tmp_path / f".tmp-elsewhere-{dead_pid()}-{'3' * 32}"
    foreign = tmp_path / ".tmp-notes"
    for path in (mine, dead, away_new, away_old, foreign):
        half(path)
    os.utime(away_old, (0, 0))
    Store.open(tmp_path).frame()
    assert dead.exists()  # a reader touches nothing
    assert set(_files.clean(tmp_path)) == {dead.name, away_old.name}
    half(dead)
    Store.create(tmp_path, {})
    assert [path.exists() for path in (mine, dead, away_new, away_old, foreign)] == [True, False, True, False, True]
