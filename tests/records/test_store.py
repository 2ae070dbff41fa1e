"""The store: cells are written once and resumed, and what is wrong is said in a line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kit.stored_cells import CONFIG, cell_of, grid, records_of
from kit.unprivileged import folder_of_nobody, unprivileged
from normscope._errors import StoreError
from normscope.records import Record, Store

# -- writing once


def test_a_complete_cell_is_never_rewritten(store: Store) -> None:
    cell = cell_of("bn", 0)
    store.write_cell(cell, records_of(cell), wall_s=1)
    before = {entry.name: (entry.stat().st_mtime_ns, entry.read_bytes()) for entry in store.path.iterdir()}
    assert not store.write_cell(cell, [], wall_s=2)
    assert {entry.name: (entry.stat().st_mtime_ns, entry.read_bytes()) for entry in store.path.iterdir()} == before


def test_records_of_another_cell_are_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="give the probes cell="):
        store.write_cell(cell_of("bn", 0), [Record("scope", 0, "p", "", "n", 1.0)], wall_s=0)
    assert store.completed() == set()


@pytest.mark.parametrize("bad", ["text", 5, Record("c", 0, "p", "", "n", "high")])  # type: ignore[arg-type]
def test_what_is_no_record_is_refused(store: Store, bad) -> None:
    with pytest.raises(StoreError, match="not made of records"):
        store.write_cell(cell_of("bn", 0), [bad], wall_s=0)


def test_records_that_fail_midway_leave_nothing(store: Store) -> None:
    cell = cell_of("bn", 0)

    def failing():
        yield from records_of(cell)
        raise RuntimeError("the run diverged")

    with pytest.raises(RuntimeError, match="diverged"):
        store.write_cell(cell, failing(), wall_s=0)
    assert [entry.name for entry in store.path.iterdir()] == ["run.json"]


def test_a_reader_cannot_write(store: Store) -> None:
    reader = Store.open(store.path)
    for write in (lambda: reader.write_cell(cell_of("bn", 0), [], wall_s=0), lambda: reader.append([])):
        with pytest.raises(StoreError, match="open for reading"):
            write()


# -- open-ended runs


def test_appended_records_are_flushed_at_an_interval(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "run", {}, rows=10, seconds=1e9)
    one = [Record("scope", k, "p", "", "n", float(k)) for k in range(9)]
    store.append(one)
    assert Store.open(store.path).frame().height == 9  # the first records are written at once
    store.append(one)
    assert Store.open(store.path).frame().height == 9
    store.append(one[:1])
    assert Store.open(store.path).frame().height == 19
    store.append(one)
    assert store.frame().height == 28  # reading one's own store flushes
    assert Store.open(store.path).frame().height == 28
    timed = Store.create(tmp_path / "timed", {}, seconds=0)
    timed.append(one)
    assert Store.open(timed.path).frame().height == 9
    assert timed.frame()["arm"].null_count() == 9


def test_the_end_of_a_with_block_flushes(tmp_path: Path) -> None:
    with Store.create(tmp_path / "run", {}, rows=10, seconds=1e9) as store:
        for _ in range(2):
            store.append([Record("scope", 0, "p", "", "n", 1.0)])
        assert Store.open(store.path).frame().height == 1
    assert Store.open(store.path).frame().height == 2


def test_a_failed_flush_keeps_the_records(store: Store, monkeypatch) -> None:
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(StoreError, match="No space left on device; make room, or choose another path"):
            store.append([Record("scope", 0, "p", "", "n", 1.0)])
    assert store.frame().height == 1


# -- resuming


def test_an_equal_configuration_resumes(store: Store) -> None:
    cell = cell_of("bn", 0)
    store.write_cell(cell, records_of(cell), wall_s=0)
    again = Store.create(store.path, {"nested": {"lr": 0.1}, "seeds": 10.0, "study": "demo"})
    assert again.completed() == {cell.id}
    assert again.provenance == store.provenance
    assert dict(again.config) == CONFIG


def test_another_configuration_is_refused_key_by_key(store: Store) -> None:
    with pytest.raises(StoreError) as caught:
        Store.create(store.path, {"study": "demo", "seeds": 20, "nested": {"lr": 0.1, "wd": 0}})
    message = str(caught.value)
    assert "nested.wd: nothing there, 0 asked; seeds: 10 there, 20 asked" in message
    assert "choose another --out" in message
    assert "study" not in message
    assert "\n" not in message


def test_many_differences_are_cut_short(tmp_path: Path) -> None:
    Store.create(tmp_path, {str(k): k for k in range(9)})
    with pytest.raises(StoreError, match="and 5 more"):
        Store.create(tmp_path, {str(k): -1 - k for k in range(9)})


# -- what is wrong is said in a line


def one_line(action, *parts: str) -> None:
    with pytest.raises(StoreError) as caught:
        action()
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_run(tmp_path: Path) -> None:
    one_line(lambda: Store.open(tmp_path / "none"), "does not exist")
    one_line(lambda: Store.open(tmp_path), "no run.json")
    (tmp_path / "file").write_text("x")
    one_line(lambda: Store.open(tmp_path / "file"), "is a file")
    one_line(lambda: Store.create(tmp_path / "file", {}), "a file")
    one_line(lambda: Store.create(tmp_path / "file" / "below", {}), "a file")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"format": 1, "config": {"a": 2}, "config_hash": "x", "provenance": {}}']
)
def test_damaged_run_json(store: Store, text: str) -> None:
    (store.path / "run.json").write_text(text)
    one_line(lambda: Store.open(store.path), "run.json is damaged")
    one_line(lambda: Store.create(store.path, CONFIG), "run.json is damaged")


def test_binary_run_json(store: Store) -> None:
    (store.path / "run.json").write_bytes(b"\xff\xfe\x00")
    one_line(lambda: Store.open(store.path), "run.json is damaged")


def test_layout_of_another_version(store: Store) -> None:
    run = json.loads((store.path / "run.json").read_text())
    (store.path / "run.json").write_text(json.dumps(run | {"format": 99}))
    one_line(lambda: Store.open(store.path), "layout 99")


@pytest.mark.parametrize("keep", [0, 3, 100, -1])
def test_truncated_part_is_named_and_healed_by_deleting(store: Store, keep: int) -> None:
    for cell in grid():
        store.write_cell(cell, records_of(cell), wall_s=0)
    whole = store.frame()
    hurt = grid()[3]
    part = store.path / f"part-{hurt.id}.parquet"
    part.write_bytes(part.read_bytes()[:keep])
    one_line(store.frame, part.name, "is damaged; delete it and run again")
    part.unlink()
    assert store.completed() == {cell.id for cell in grid()} - {hurt.id}
    one_line(store.frame, part.name, "is gone; run again")
    assert store.write_cell(hurt, records_of(hurt), wall_s=0)
    assert store.frame().equals(whole)


def test_damaged_mark_is_named(store: Store) -> None:
    cell = cell_of("bn", 0)
    store.write_cell(cell, records_of(cell), wall_s=0)
    mark = store.path / f"cell-{cell.id}.json"
    for text in ("", "{}", mark.read_text().replace('"seed": 0', '"seed": 1')):
        mark.write_text(text)
        one_line(store.frame, mark.name, "damaged")


def test_folder_that_cannot_be_written(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        one_line(lambda: Store.create(tmp_path / "new", {}), "Permission denied", "choose another folder")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", refuse)
        one_line(lambda: Store.create(tmp_path, {}), "Permission denied", "choose another path")
    Store.create(tmp_path, {})
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        one_line(lambda: Store.create(tmp_path, {}), "cannot be written")


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_read_only_folder() -> None:
    with folder_of_nobody() as folder, unprivileged():
        store = Store.create(folder / "run", CONFIG)
        cell = cell_of("bn", 0)
        store.write_cell(cell, records_of(cell), wall_s=0)
        store.path.chmod(0o555)
        assert Store.open(store.path).frame().height == 6
        one_line(lambda: Store.create(store.path, CONFIG), "cannot be written")
        one_line(lambda: Store.create(store.path / "below", {}), "Permission denied")
        one_line(lambda: store.write_cell(cell_of("bn", 1), [], wall_s=0), "Permission denied")
        store.path.chmod(0o755)
        assert store.write_cell(cell_of("bn", 1), [], wall_s=0)


# -- the room


def test_importing_records_is_light() -> None:
    heavy = "{'polars', 'duckdb', 'numpy', 'scipy', 'torch'}"
    code = f"import sys, normscope.records; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_reading_prints_nothing(store: Store) -> None:
    cell = cell_of("bn", 0)
    store.write_cell(cell, records_of(cell), wall_s=0)
    code = "import sys; from normscope.records import Store; Store.open(sys.argv[1]).frame()"
    done = subprocess.run([sys.executable, "-c", code, str(store.path)], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
