"""Parts of open-ended runs: at any moment and after any crash a reader finds each record once."""

import contextlib
import io
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from kit.part_writer import append_steps
from kit.parts import filled, ranges, record, steps_in
from normscope._errors import StoreError
from normscope.records import Record, Store, files, part_writer, parts


@pytest.fixture(autouse=True)
def small_fan_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three parts of one size become one at once, so that a few flushes show what thousands do elsewhere."""
    monkeypatch.setattr(part_writer, "FAN_IN", 3)
    monkeypatch.setattr(part_writer, "LAG", 0)


# -- compaction


@pytest.mark.parametrize("flushes", [0, 1, 2, 3, 4, 9, 13, 31])
def test_parts_become_larger_parts(tmp_path: Path, flushes: int) -> None:
    filled(tmp_path, flushes)
    assert steps_in(tmp_path) == list(range(flushes))
    written = ranges(tmp_path)
    lengths = [last - first + 1 for first, last in written]
    digits, rest = [], flushes
    while rest:  # as many parts of each size as the number of flushes has digits to the base of the fan-in
        digits.append(rest % 3)
        rest //= 3
    assert {3**power: count for power, count in enumerate(digits) if count} == {
        length: lengths.count(length) for length in lengths
    }
    assert len(list(tmp_path.glob("scope-*.parquet"))) == len(written)


def test_thousands_of_flushes_leave_few_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_writer, "FAN_IN", 64)
    monkeypatch.setattr(files, "sync", lambda _: None)  # only for the time that it takes
    filled(tmp_path, 1000)
    assert len(list(tmp_path.glob("scope-*.parquet"))) == 15 + 1000 - 15 * 64
    assert steps_in(tmp_path) == list(range(1000))


def test_the_newest_flushes_stay_by_themselves_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_writer, "LAG", 2)
    for flushes, expected in ((4, [1, 1, 1, 1]), (5, [3, 1, 1]), (7, [3, 1, 1, 1, 1]), (11, [9, 1, 1])):
        filled(tmp_path / str(flushes), flushes)
        assert [last - first + 1 for first, last in ranges(tmp_path / str(flushes))] == expected


def test_parts_grow_no_further_than_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_writer, "MOST_ROWS", 8)
    filled(tmp_path, 13)
    assert ranges(tmp_path) == [(0, 2), (3, 5), (6, 8), (9, 11), (12, 12)]
    assert steps_in(tmp_path) == list(range(13))


@pytest.mark.parametrize("hurt", ["gone", "damaged"])
def test_a_part_that_cannot_be_read_stops_the_merge_and_nothing_else(tmp_path: Path, hurt: str) -> None:
    store = filled(tmp_path, 2)
    (first, second) = sorted(tmp_path.glob("scope-*.parquet"))
    if hurt == "gone":
        first.unlink()
    else:
        first.write_bytes(b"PAR1 half")
    for step in (2, 3):
        store.append([record(step)])
        store.flush()
    if hurt == "damaged":
        with pytest.raises(StoreError, match=f"{first.name} is damaged; delete it: its records are lost"):
            store.frame()
        first.unlink()
    assert second.exists()
    assert steps_in(tmp_path) == [1, 2, 3]


def test_parts_of_an_older_version_are_read_beside_new_parts(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    (part,) = tmp_path.glob("scope-*.parquet")
    part.rename(tmp_path / f"scope-{time.time_ns():020d}-{'0a' * 6}.parquet")
    store = Store.create(tmp_path, {"kind": "scope"})
    for step in range(1, 8):
        store.append([record(step)])
        store.flush()
    assert steps_in(tmp_path) == list(range(8))


def test_special_values_and_odd_words_survive_a_merge(tmp_path: Path) -> None:
    values = [float("nan"), float("inf"), -float("inf"), -0.0, 5e-324]
    rows = [Record("scope", k, "p", "ü 'x' \"y\" <b>\n", "", value, "€") for k, value in enumerate(values)]
    with Store.create(tmp_path / "plain", {}) as plain:
        plain.append(rows)
    store = Store.create(tmp_path / "merged", {})
    for row in rows:
        store.append([row])
        store.flush()
    assert len(ranges(store.path)) == 3
    assert store.frame().equals(plain.frame())


# -- crashes


class Crash(BaseException):
    """The process dies here, as far as the folder is concerned."""


@contextlib.contextmanager
def dying_at(moment: int) -> Iterator[None]:
    """Let the step with this number, of all steps that touch the disk, be the last; nothing is tidied up after it."""
    steps = iter(range(10**6))
    dead = False

    def dying(step, *, torn: bool = False):
        def run(*args, **kwargs):
            nonlocal dead
            if dead or next(steps) == moment:
                dead = True
                raise Crash
            if torn:
                args[0].write_bytes(b"PAR1 half")
                if next(steps) == moment:
                    dead = True
                    raise Crash
            return step(*args, **kwargs)

        return run

    with pytest.MonkeyPatch.context() as patch:
        # the places where a process can die
        patch.setattr(files, "fill", dying(files.fill, torn=True))
        patch.setattr(part_writer, "read_part", dying(parts.read_part))
        patch.setattr(files, "sync", dying(files.sync))
        patch.setattr(os, "replace", dying(os.replace))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        yield


def test_a_crash_at_any_moment_loses_the_last_flush_at_most_and_doubles_nothing(tmp_path: Path) -> None:
    moments = 0
    for moment in range(10_000):
        folder = tmp_path / str(moment)
        store = filled(folder, 8)  # parts of 3, 3, 1, 1: the next flush merges twice
        with dying_at(moment):
            try:
                store.append([record(8)])
                store.flush()
                finished = True
            except Crash:
                finished = False
        found = steps_in(folder)
        assert found in (list(range(8)), list(range(9))), moment
        again = Store.create(folder, {"kind": "scope"})  # the next start tidies up
        assert steps_in(folder) == found
        assert len(list(folder.glob("scope-*.parquet"))) == len(ranges(folder))
        again.append([record(100)])
        again.flush()
        assert steps_in(folder) == [*found, 100]
        if finished:
            break
        moments += 1
    assert finished
    assert found == list(range(9))
    assert moments > 20


def test_the_crash_check_catches_a_writer_that_deletes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, 2)
    whole = files.write_bytes

    def careless(path: Path, content: bytes, *, replace: bool = True) -> bool:
        if "-00000000-00000002-" in path.name:
            for part in tmp_path.glob("scope-*.parquet"):
                part.unlink()
            raise Crash
        return whole(path, content, replace=replace)

    monkeypatch.setattr(files, "write_bytes", careless)
    store.append([record(2)])
    with pytest.raises(Crash):
        store.flush()
    assert steps_in(tmp_path) == []


def test_the_check_of_doubles_catches_a_reader_that_takes_covered_parts(tmp_path: Path, monkeypatch) -> None:
    store = filled(tmp_path, 2)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        store.append([record(2)])
        store.flush()
    assert steps_in(tmp_path) == [0, 1, 2]
    monkeypatch.setattr(parts.Part, "covers", lambda *_: False)
    assert steps_in(tmp_path) == [0, 0, 1, 1, 2, 2]


def test_a_killed_process_leaves_each_flush_once(tmp_path: Path) -> None:
    rng = random.Random(0)
    context = multiprocessing.get_context("spawn")
    for cell in ("a", "b"):
        told, tells = context.Pipe(duplex=False)
        process = context.Process(target=append_steps, args=(str(tmp_path), cell, 10**6, tells))
        process.start()
        flushed = -1
        deadline = time.monotonic() + rng.uniform(0.3, 0.6)
        while time.monotonic() < deadline or flushed < 20:
            flushed = told.recv()
        process.kill()
        process.join()
        tells.close()
        with contextlib.suppress(EOFError):
            while told.poll():
                flushed = told.recv()
        told.close()
        found = steps_in(tmp_path, cell)
        assert found == list(range(len(found)))
        assert len(found) >= flushed + 1


def test_several_writers_and_a_reader_at_once(tmp_path: Path) -> None:
    """The reader sees of each writer a beginning of its steps, each once, and never less than before.

    After each look the writers may write ten flushes more, so that they write during each of the next looks, on a
    machine of any speed.
    """
    Store.create(tmp_path, {"kind": "scope"})
    context = multiprocessing.get_context("spawn")
    cells = {f"rank{k}": context.Semaphore(1) for k in range(3)}
    writers = [
        context.Process(target=append_steps, args=(str(tmp_path), cell, 60, None, leave))
        for cell, leave in cells.items()
    ]
    for writer in writers:
        writer.start()
    seen = dict.fromkeys(cells, 0)
    looks = 0
    while any(writer.is_alive() for writer in writers):
        frame = Store.open(tmp_path).frame()
        for cell, before in seen.items():
            found = frame.filter(pl.col("cell") == cell)["step"].sort().to_list()
            assert found == list(range(len(found)))
            assert len(found) >= before
            seen[cell] = len(found)
            cells[cell].release()
        looks += 1
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert looks > 5
    for cell in seen:
        assert steps_in(tmp_path, cell) == list(range(60))


def rows_of(found: list[parts.Part]) -> pl.DataFrame:
    return pl.concat([parts.read_part(part) for part in found])


def write_as(folder: Path, writer: str, flushes: tuple[int, int], frame: pl.DataFrame) -> None:
    """Write a part of a writer, as a merge does."""
    content = io.BytesIO()
    frame.write_parquet(content)
    part = parts.part_with(folder, writer, flushes, 0, content.getvalue())
    part.path.write_bytes(content.getvalue())


def renamed(part: parts.Part) -> None:
    """Let a part vanish, and one that covers it and a flush more appear."""
    write_as(part.path.parent, part.writer, (0, part.last + 1), parts.read_part(part))
    part.path.unlink()


def test_a_reader_whose_file_vanished_lists_again(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    tries = []

    def read(found: list[parts.Part]) -> pl.DataFrame:
        tries.append([part.path.name for part in found])
        if len(tries) == 1:
            write_as(tmp_path, found[0].writer, (0, 1), rows_of(found))
            for part in found:
                part.path.unlink()
        return rows_of(found)

    assert parts.read_parts(tmp_path, read).height == 2
    assert [len(names) for names in tries] == [2, 1]


@pytest.mark.parametrize("merges", [1, 200])
def test_a_reader_outlasts_a_busy_writer(tmp_path: Path, merges: int) -> None:
    """Every try but the last meets a part that vanished: their number is no reason to give up."""
    store = filled(tmp_path, 1)
    left = iter(range(merges))

    def read(found: list[parts.Part]) -> pl.DataFrame:
        if next(left, None) is not None:
            renamed(found[0])
        return rows_of(found)

    assert parts.read_parts(tmp_path, read).height == 1
    assert store.frame().height == 1


def test_a_reader_that_is_starved_blames_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message must not advise to delete a part that a merge has replaced."""
    monkeypatch.setattr(parts, "PATIENCE", 0.02)
    filled(tmp_path, 1)

    def read(found: list[parts.Part]) -> pl.DataFrame:
        renamed(found[0])
        return rows_of(found)

    with pytest.raises(StoreError, match="changes faster than it can be read") as caught:
        parts.read_parts(tmp_path, read)
    assert "delete" not in str(caught.value)


def test_a_listing_during_a_merge_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing that misses the covering part and the covered parts alike is not believed."""
    filled(tmp_path, 9)
    listdir, calls = os.listdir, iter(range(10))
    monkeypatch.setattr(os, "listdir", lambda path: listdir(path) if next(calls) else ["run.json"])
    assert ranges(tmp_path) == [(0, 8)]


def test_threads_that_append_to_stores_of_one_folder(tmp_path: Path) -> None:
    def work(cell: str) -> None:
        store = Store.create(tmp_path, {"kind": "scope"})
        for step in range(20):
            store.append([record(step, cell)])
            store.flush()

    threads = [threading.Thread(target=work, args=(f"c{k}",)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(3):
        assert steps_in(tmp_path, f"c{k}") == list(range(20))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_process_writes_its_own_records_alone(tmp_path: Path) -> None:
    store = Store.create(tmp_path, {"kind": "scope"}, seconds=1e9)
    for step in range(2):
        store.append([record(step)])  # the second waits
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            store.flush()  # not of its own records: Polars, which may hang in a forked process, is not called
            code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.append([record(2)])
    store.flush()
    assert steps_in(tmp_path) == [0, 1, 2]


def test_a_writer_in_another_process_takes_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, 1)
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    store.append([record(1)])
    store.flush()
    assert ranges(tmp_path) == [(0, 0), (0, 0)]
    assert steps_in(tmp_path) == [0, 1]
