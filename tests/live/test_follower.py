"""The follower: a viewer that takes each answer has what the folder holds, whatever the writer does meanwhile."""

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars as pl
import pytest

from kit import live_run
from kit.live_run import begin, rows_of
from normscope._errors import StoreError, UsageError
from normscope.live import Follower, follower as follower_module, sentences
from normscope.records import Record, Store, files, part_writer


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower_module, "PAUSE", 0.0)
    monkeypatch.setattr(part_writer, "FAN_IN", 3)
    monkeypatch.setattr(part_writer, "LAG", 2)


class Viewer:
    """Takes answers as the page does."""

    def __init__(self, follower: Follower) -> None:
        self.follower = follower
        self.collection, self.version = "", 0
        self.names: dict[int, tuple[str, ...]] = {}
        self.points: dict[int, list[tuple[int, float]]] = {}
        self.resets = -1

    def look(self) -> dict:
        answer = self.follower.answer(self.collection, self.version)
        if answer["collection"] != self.collection:
            self.names, self.points = {}, {}
            self.resets += 1
        self.collection, self.version = answer["collection"], answer["version"]
        for number, *names in answer["series"]:
            self.names[number] = tuple(names[:4])
        for number, steps, values in answer["points"]:
            self.points.setdefault(number, []).extend(zip(steps, values, strict=True))
        return answer

    def rows(self) -> list[tuple]:
        return sorted((*self.names[number], *point) for number, points in self.points.items() for point in points)


def rows_in(folder: Path) -> list[tuple]:
    frame = (
        Store.open(folder).frame().select("cell", "probe", "name", "site", "step", pl.col("value").round_sig_figs(6))
    )
    return sorted(frame.iter_rows())


def write(store: Store, cell: str, *steps: int) -> None:
    for step in steps:
        store.append(rows_of(cell, step))
        store.flush()


def test_viewers_of_a_growing_run_have_all_rows_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    viewer = Viewer(Follower(folder))
    answer = viewer.look()
    assert (answer["state"], answer["cells"]) == ("waiting", [])
    assert "does not exist yet" in answer["said"]
    store, cell = begin(folder)
    answer = viewer.look()
    assert "No rows yet" in answer["said"]
    late = Viewer(viewer.follower)
    for step in range(14):  # merges happen meanwhile
        write(store, cell, step)
        answer = viewer.look()
        assert viewer.rows() == rows_in(folder)
        if step % 5 == 4:
            late.look()
            assert late.rows() == rows_in(folder)
    assert viewer.resets == 0
    (told,) = answer["cells"]
    assert (told["cell"], told["rows"], told["step"], told["state"]) == ("scope", 14 * 8, 13, "running")
    assert told["rate"] > 0
    assert told["facts"] == {"model": "ResNet", "every": "50"}
    assert viewer.look()["points"] == []


@pytest.mark.parametrize("seed", range(5))
def test_viewers_that_look_seldom_miss_and_double_nothing(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    viewer = Viewer(Follower(tmp_path))
    writers = [begin(tmp_path, rank=rank) for rank in range(2)]
    steps = [0, 0]
    for _ in range(12):
        for _ in range(rng.randrange(1, 9)):
            rank = rng.randrange(2)
            write(*writers[rank], steps[rank])
            steps[rank] += 1
        viewer.look()
        assert viewer.rows() == rows_in(tmp_path)
    assert {names[0] for names in viewer.names.values()} == {"scope.rank0", "scope.rank1"}


def test_a_flush_that_was_written_twice_is_shown_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, cell = begin(tmp_path)
    write(store, cell, 0)
    viewer = Viewer(Follower(tmp_path))

    def failing(path: Path) -> None:
        if path == tmp_path:
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", failing)  # the disk fails after the file is in place
        with pytest.raises(StoreError):
            write(store, cell, 1)
        viewer.look()
        assert viewer.rows() == rows_in(tmp_path)
    write(store, cell, 2)
    viewer.look()
    assert viewer.rows() == rows_in(tmp_path)
    assert {row[4] for row in viewer.rows()} == {0, 1, 2}


def test_a_damaged_part_is_named_and_all_others_are_shown(tmp_path: Path) -> None:
    store, cell = begin(tmp_path)
    write(store, cell, 0, 1)
    hurt = sorted(tmp_path.glob("scope-*.parquet"))[0]
    content = hurt.read_bytes()
    hurt.write_bytes(content[:100])
    viewer = Viewer(Follower(tmp_path))
    for _ in range(2):
        answer = viewer.look()
        assert answer["damaged"] == [hurt.name]
        assert {row[4] for row in viewer.rows()} == {1}
    hurt.write_bytes(content)
    assert viewer.look()["damaged"] == []
    assert viewer.rows() == rows_in(tmp_path)


ODD = {
    "no columns": pl.DataFrame({"a": [1]}),
    "words for values": pl.DataFrame(
        {name: ["x"] for name in ("cell", "step", "probe", "site", "name", "value", "unit")}
    ),
    "lists": pl.DataFrame({name: [[1]] for name in ("cell", "step", "probe", "site", "name", "value", "unit")}),
}


@pytest.mark.parametrize("odd", ODD)
def test_a_file_that_is_no_part_is_named_and_all_others_are_shown(tmp_path: Path, odd: str) -> None:
    write(*begin(tmp_path), 0)
    rows = rows_in(tmp_path)
    name = f"scope-{2:020d}-{'0b' * 6}-00000000-00000000.parquet"
    ODD[odd].write_parquet(tmp_path / name)
    viewer = Viewer(Follower(tmp_path))
    assert viewer.look()["damaged"] == [name]
    assert viewer.rows() == rows


def test_rows_without_a_value_are_left_out(tmp_path: Path) -> None:
    columns = {name: [None] for name in ("cell", "probe", "site", "name", "unit")} | {"step": [None], "value": [None]}
    pl.DataFrame(columns).write_parquet(tmp_path / f"scope-{2:020d}-{'0b' * 6}-00000000-00000000.parquet")
    assert Follower(tmp_path).answer("", 0)["points"] == []


def test_a_folder_that_is_deleted_stays_on_the_page_until_another_run_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    viewer = Viewer(Follower(folder))
    write(*begin(folder), 0, 1)
    viewer.look()
    before = viewer.rows()
    shutil.rmtree(folder)
    answer = viewer.look()
    assert answer["state"] == "gone"
    assert viewer.rows() == before
    write(*begin(folder, "other"), 5)
    viewer.look()
    assert viewer.rows() == rows_in(folder)
    assert viewer.resets == 1


def test_a_study_or_several_runs_are_refused_in_a_line(tmp_path: Path) -> None:
    Store.create(tmp_path / "a" / "one", {"study": "demo"})
    with pytest.raises(UsageError, match="is the run of a study; its page is written by: normscope report"):
        Follower(tmp_path / "a" / "one")
    with pytest.raises(UsageError, match="holds runs; give the folder of one: one"):
        Follower(tmp_path / "a")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file"):
        Follower(tmp_path / "file")


def test_a_study_that_begins_in_the_folder_is_said(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "run")
    Store.create(tmp_path / "run", {"study": "demo"})
    answer = follower.answer("", 0)
    assert answer["state"] == "trouble"
    assert "normscope report" in answer["said"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"config": {}}'])
def test_a_damaged_run_file_is_said_and_the_rows_are_kept(tmp_path: Path, text: str) -> None:
    viewer = Viewer(Follower(tmp_path))
    write(*begin(tmp_path), 0)
    viewer.look()
    good = (tmp_path / "run.json").read_text()
    (tmp_path / "run.json").write_text(text)
    assert "damaged" in viewer.look()["said"]
    (tmp_path / "run.json").write_text(good)
    assert viewer.look()["said"] == ""
    assert viewer.rows() == rows_in(tmp_path)


def test_the_end_of_a_training_is_said_where_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower_module, "ENDED_FOR", 0.5)
    follower = Follower(tmp_path)
    training = subprocess.Popen(
        [sys.executable, live_run.__file__, str(tmp_path), "1000", "0.01"], stdout=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 60
        while not (told := follower.answer("", 0)["cells"]) or not told[0]["rows"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert told[0]["state"] == "running"
    finally:
        training.kill()
        training.communicate()
    deadline = time.monotonic() + 60
    while follower.answer("", 0)["cells"][0]["state"] != "ended":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_that_goes_on_quietly_has_not_ended(tmp_path: Path) -> None:
    write(*begin(tmp_path), 0)
    follower = Follower(tmp_path)
    (part,) = tmp_path.glob("scope-*.parquet")
    os.utime(part, (time.time() - 500, time.time() - 500))
    answer = follower.answer("", 0)
    assert answer["state"] == answer["cells"][0]["state"] == "quiet"
    assert 499 < answer["cells"][0]["since"] < 560


def test_a_later_writer_than_the_claim_s_is_not_taken_for_a_process_that_ended(tmp_path: Path) -> None:
    _, cell = begin(tmp_path)
    path = tmp_path / f"scope-{cell}.json"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    text = path.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {gone.pid}')
    started = next(line for line in text.splitlines() if '"started"' in line)
    path.write_text(text.replace(started, f' "started": {time.time() - 1000},'))
    write(Store.create(tmp_path, {"kind": "scope"}), cell, 0)
    (part,) = tmp_path.glob("scope-*.parquet")
    os.utime(part, (time.time() - 100, time.time() - 100))
    assert Follower(tmp_path).answer("", 0)["cells"][0]["state"] == "quiet"


def test_findings_beside_the_records_stand_out(tmp_path: Path) -> None:
    _, cell = begin(tmp_path)
    found = '{"findings": [{"code": "NS101", "severity": "error", "message": "It is so."}]}'
    (tmp_path / f"findings-{cell}.json").write_text(found)
    (told,) = Follower(tmp_path).answer("", 0)["cells"]
    assert told["stands_out"] == ["NS101 (error): It is so."]
    for text in ("", "{", "[]", '{"findings": 3}', '{"findings": [3]}', "null"):
        (tmp_path / f"findings-{cell}.json").write_text(text)
        assert Follower(tmp_path).answer("", 0)["cells"][0]["stands_out"] == []


def test_sentences_are_composed_beside_the_answers_and_an_error_leaves_the_old(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sentences, "PAUSE", 0.0)
    store, cell = begin(tmp_path)
    write(store, cell, 0)
    going, calls = threading.Event(), []

    def compose(folder: Path) -> dict[str, list[str]]:
        calls.append(folder)
        going.wait(30)
        if len(calls) == 2:
            raise OSError("gone")
        return {cell: [f"It grows ({len(calls)})."]}

    follower = Follower(tmp_path, compose)

    def said() -> list[str]:
        return follower.answer("", 0)["cells"][0]["stands_out"]

    assert said() == []  # the answer does not wait for the sentences
    going.set()
    until(lambda: said() == ["It grows (1)."])
    assert calls == [tmp_path]  # no new rows, no new sentences
    write(store, cell, 1)
    until(lambda: (said(), len(calls))[1] == 2)
    assert said() == ["It grows (1)."]
    write(store, cell, 2)
    until(lambda: said() == ["It grows (3)."])


def until(met, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("cell", ["a/../../x", "..", "a\\b", ".x", "/x", "a/x"])
def test_a_cell_out_of_a_part_leads_to_no_file_outside(tmp_path: Path, cell: str) -> None:
    store = Store.create(tmp_path / "run", {"kind": "scope"})
    store.append([Record(cell, 0, "p", "", "n", 1.0)])
    store.flush()
    secret = '{"findings": [{"code": "NS101", "severity": "error", "message": "secret"}]}'
    (tmp_path / "x.json").write_text(secret)
    (tmp_path / "run" / "findings-a").mkdir()  # so that the first of them names the file outside
    (tmp_path / "run" / "findings-a" / "x.json").write_text(secret)
    assert Follower(tmp_path / "run").answer("", 0)["cells"][0]["stands_out"] == []


@pytest.mark.parametrize("asked", [("", -1), ("", 10**12), ("x" * 1000, 5), ("../..", 1)])
def test_a_viewer_that_asks_for_what_never_was_gets_all(tmp_path: Path, asked) -> None:
    write(*begin(tmp_path), 0)
    assert len(Follower(tmp_path).answer(*asked)["points"]) == 8


def test_nothing_is_written(tmp_path: Path) -> None:
    write(*begin(tmp_path), 0, 1)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")}
    follower = Follower(tmp_path)
    for _ in range(3):
        follower.answer("", 0)
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")} == before
