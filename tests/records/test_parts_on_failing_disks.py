"""A disk that fails under an open-ended run: no record is lost, none is doubled, and the user is told in a line."""

import contextlib
import errno
import os
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from kit.parts import filled, ranges, record, steps_in
from kit.unprivileged import folder_of_nobody, unprivileged
from normscope._errors import StoreError
from normscope.records import Record, Store, files, flushing, part_writer


@pytest.fixture(autouse=True)
def small_fan_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three parts of one size become one at once, so that a few flushes show what thousands do elsewhere."""
    monkeypatch.setattr(part_writer, "FAN_IN", 3)
    monkeypatch.setattr(part_writer, "LAG", 0)


FAILURES = {
    "full disk": (files, "sync", OSError(errno.ENOSPC, "No space left on device")),
    "input and output": (os, "replace", OSError(errno.EIO, "Input/output error")),
    "polars": (pl.DataFrame, "write_parquet", pl.exceptions.ComputeError("zstd: no space")),
    "panic": (pl.DataFrame, "write_parquet", pl.exceptions.PanicException("called unwrap")),
    "memory": (pl.DataFrame, "write_parquet", MemoryError("no memory")),
    "anything": (pl.DataFrame, "write_parquet", RuntimeError("of another kind")),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_flush_that_fails_keeps_the_records_for_another(tmp_path: Path, kind: str, monkeypatch) -> None:
    place, name, error = FAILURES[kind]
    store = filled(tmp_path, 2)

    def failing(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(place, name, failing)
        store.append([record(2)])
        with pytest.raises(StoreError, match=r"cannot write .*\(1 records wait in memory") as caught:
            store.flush()
        assert "\n" not in str(caught.value)
        store.append([record(3)])  # not tried again before the pause is over
        with pytest.raises(StoreError, match="2 records wait"):
            store.flush()
        assert store.frame()["step"].sort().to_list() == [0, 1, 2, 3]  # its own reader misses nothing
        assert store.frame(site="layer0")["step"].sort().to_list() == [0, 3]
    assert store.frame()["step"].sort().to_list() == [0, 1, 2, 3]
    store.flush()
    assert steps_in(tmp_path) == [0, 1, 2, 3]
    assert not list(tmp_path.glob(".tmp-*"))
    assert store.lost == 0


def test_a_merge_that_fails_loses_nothing_and_says_nothing(tmp_path: Path, monkeypatch) -> None:
    store = filled(tmp_path, 2)
    replace = os.replace

    def full(source, target):
        if "00000000-00000002" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    for step in range(2, 7):
        store.append([record(step)])
        store.flush()
    assert steps_in(tmp_path) == list(range(7))
    assert ranges(tmp_path) == [(0, 0), (1, 1), (2, 2), (3, 5), (6, 6)]


def test_a_failed_flush_whose_file_was_in_place_doubles_nothing(tmp_path: Path, monkeypatch) -> None:
    store = filled(tmp_path, 1)
    sync = files.sync

    def failing(path: Path) -> None:
        if path == tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        sync(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", failing)
        store.append([record(1)])
        with pytest.raises(StoreError):
            store.flush()
        assert steps_in(tmp_path) == [0, 1]
        assert store.frame()["step"].to_list() == [0, 1]
    store.append([record(2)])
    store.flush()
    assert steps_in(tmp_path) == [0, 1, 2]


def test_records_wait_up_to_a_bound(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(flushing, "MOST_WAITING", 5)
    store = filled(tmp_path, 1)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        for step in range(1, 10):
            with contextlib.suppress(StoreError):
                store.append([record(step)])
        with pytest.raises(StoreError, match=r"5 records wait in memory for another try; 4 were dropped"):
            store.flush()
    store.flush()
    assert store.lost == 4
    assert steps_in(tmp_path) == [0, 5, 6, 7, 8, 9]


def test_tries_come_at_growing_intervals_while_the_disk_fails(tmp_path: Path, monkeypatch) -> None:
    now = 1000.0
    monkeypatch.setattr(flushing.time, "monotonic", lambda: now)
    store = Store.create(tmp_path, {}, rows=2, seconds=2.0)
    failures = []

    def full(*_):
        failures.append(now)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    for step in range(300):
        now += 1.0
        with contextlib.suppress(StoreError):
            store.append([record(step)])
    gaps = [after - before for before, after in pairwise(failures)]
    assert gaps == [4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_flushes_of_a_slow_disk_take_a_fiftieth_of_the_time(tmp_path: Path, monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr(flushing.time, "monotonic", lambda: now)
    store = Store.create(tmp_path, {}, seconds=2.0)
    write, spent = part_writer.PartWriter.write, 0.0

    def slow(writer: part_writer.PartWriter, frame: pl.DataFrame) -> None:
        nonlocal now, spent
        now += 0.1
        spent += 0.1
        write(writer, frame)

    monkeypatch.setattr(part_writer.PartWriter, "write", slow)
    for step in range(1000):
        now += 0.05
        store.append([record(step)])
    assert 0.01 * now < spent < 0.025 * now


def test_a_single_slow_flush_delays_nothing(tmp_path: Path, monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr(flushing.time, "monotonic", lambda: now)
    store = Store.create(tmp_path, {}, seconds=2.0)
    write, times = part_writer.PartWriter.write, iter([0.5, 0.0, 0.5, 0.0])

    def slow(writer: part_writer.PartWriter, frame: pl.DataFrame) -> None:
        nonlocal now
        now += next(times)
        write(writer, frame)

    monkeypatch.setattr(part_writer.PartWriter, "write", slow)
    for step in range(4):
        store.append([record(step)])
        assert steps_in(tmp_path) == list(range(step + 1))
        now += 2.0


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_folder_that_becomes_read_only() -> None:
    with folder_of_nobody() as folder, unprivileged():
        store = filled(folder / "run", 2)
        store.path.chmod(0o555)
        store.append([record(2)])
        with pytest.raises(StoreError, match="Permission denied"):
            store.flush()
        assert store.frame().height == 3
        store.path.chmod(0o755)
        store.flush()
        assert steps_in(store.path) == [0, 1, 2]


def test_a_folder_that_is_deleted_and_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    store = filled(folder, 2)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    store.append([record(2)])
    with pytest.raises(StoreError, match="the folder is gone; make it again"):
        store.flush()
    assert not folder.exists()
    folder.mkdir()
    for step in range(3, 6):
        store.append([record(step)])
        store.flush()
    assert steps_in(folder) == [2, 3, 4, 5]


def test_what_is_no_record_is_dropped_and_said(tmp_path: Path) -> None:
    store = Store.create(tmp_path, {})
    with pytest.raises(StoreError, match="not made of records"):
        store.append([record(0), Record("scope", 1, "p", "", "n", None), record(2), "x"])  # type: ignore[arg-type, list-item]
    assert store.lost == 2
    store.flush()
    assert steps_in(tmp_path) == [0, 2]


def test_records_that_wait_are_written_when_the_time_has_come_without_new_records(tmp_path: Path, monkeypatch) -> None:
    now = 0.0
    monkeypatch.setattr(flushing.time, "monotonic", lambda: now)
    store = Store.create(tmp_path, {}, seconds=2.0)
    store.append([record(0)])
    store.append([record(1)])
    store.flush_if_due()
    assert steps_in(tmp_path) == [0]
    now = 2.5
    store.flush_if_due()
    assert steps_in(tmp_path) == [0, 1]


def test_scopes_with_other_cells_share_a_folder(tmp_path: Path) -> None:
    Store.create(tmp_path, {"kind": "scope", "cell": "a"})
    assert Store.create(tmp_path, {"kind": "scope", "cell": "b"}).config == {"kind": "scope", "cell": "a"}
    with pytest.raises(StoreError, match="another configuration"):
        Store.create(tmp_path, {"study": "demo"})
