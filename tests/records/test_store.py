"""The store: what is written is read, in one order, and what is wrong is said in a line."""

import json
import math
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from kit.unprivileged import folder_of_nobody, unprivileged
from normscope._errors import StoreError, UsageError
from normscope.records import Cell, MemoryStore, Record, Store, _table  # white box: to plant a frame without order

CONFIG = {"study": "demo", "seeds": 10, "nested": {"lr": 0.1}}
WORD = st.text(max_size=6)
RECORDS = st.lists(
    st.builds(
        Record,
        cell=st.just("scope"),
        step=st.integers(0, 2**62),
        probe=WORD,
        site=WORD,
        name=WORD,
        value=st.floats(allow_nan=True, allow_infinity=True),
        unit=WORD,
    ),
    max_size=30,
)


def cell_of(arm: str, seed: int, **point) -> Cell:
    return Cell("demo", arm, seed, point, {"steps": 3})


def records_of(cell: Cell, n: int = 6) -> list[Record]:
    return [Record(cell.id, k // 2, "training", f"layer.{k % 2}", "loss", seed_value(cell, k)) for k in range(n)]


def seed_value(cell: Cell, k: int) -> float:
    return cell.seed + k / 8


def bits(value: float) -> bytes:
    return b"nan" if math.isnan(value) else struct.pack("<d", value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run with 'quotes' and ü"


@pytest.fixture
def store(folder: Path) -> Store:
    return Store.create(folder, CONFIG)


# -- what is written is read


def test_a_cell_comes_back(store: Store) -> None:
    cell = cell_of("bn", 3, lr=0.1, width=64)
    assert store.write_cell(cell, iter(records_of(cell)), wall_s=1.5)
    frame = Store.open(store.path).frame()
    assert frame.columns == ["cell", "arm", "seed", "lr", "width", "step", "probe", "site", "name", "value", "unit"]
    assert frame.schema["seed"] == frame.schema["width"] == frame.schema["step"] == pl.Int64
    assert frame.schema["value"] == frame.schema["lr"] == pl.Float64
    assert frame.schema["site"] == pl.String
    rows = {(row["step"], row["site"]): row["value"] for row in frame.iter_rows(named=True)}
    assert rows == {(r.step, r.site): r.value for r in records_of(cell)}
    assert store.completed() == {cell.id}
    assert store.cells() == [cell]
    assert store.wall_times() == {cell.id: 1.5}


@given(RECORDS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_value_comes_back_bit_for_bit(tmp_path_factory, records) -> None:
    memory = MemoryStore()
    memory.append(records)
    with Store.create(tmp_path_factory.mktemp("run") / "run", {}) as store:
        store.append(records)
    frame = store.frame()
    found = [tuple(row) for row in frame.select("step", "probe", "site", "name", "unit").iter_rows()]
    assert sorted(found) == sorted((r.step, r.probe, r.site, r.name, r.unit) for r in records)
    assert sorted(map(bits, frame["value"])) == sorted(bits(r.value) for r in records)
    assert frame.equals(memory.frame())
    assert frame.schema == memory.frame().schema


@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7976931348623157e308])
def test_special_values(store: Store, special: float) -> None:
    cell = cell_of("bn", 0)
    store.write_cell(cell, [Record(cell.id, 0, "p", "", "n", special)], wall_s=0)
    (found,) = store.frame()["value"]
    assert bits(found) == bits(special)
    assert store.frame()["value"].null_count() == 0


def test_an_empty_run_and_an_empty_cell(store: Store) -> None:
    assert store.frame().height == 0
    assert store.cells() == []
    assert store.sql("SELECT count(*) AS n FROM records")["n"].item() == 0
    store.write_cell(cell_of("bn", 0), [], wall_s=0)
    assert store.completed() == {cell_of("bn", 0).id}
    assert store.frame().height == 0
    assert store.frame().columns == [c for c in store.frame().columns if c in _table.columns([])]


# -- one order


def grid() -> list[Cell]:
    return [cell_of(arm, seed, lr=lr) for arm in ("none", "bn") for seed in (10, 2) for lr in (0.3, 0.1)]


def filled(path: Path, order: list[Cell], rng: random.Random | None = None) -> pl.DataFrame:
    store = Store.create(path, CONFIG)
    for cell in order:
        records = records_of(cell)
        if rng:
            rng.shuffle(records)
        store.write_cell(cell, records, wall_s=len(order))
    return store.frame()


def test_order_of_writing_does_not_matter(tmp_path: Path) -> None:
    straight = filled(tmp_path / "a", grid())
    rng = random.Random(0)
    for k in range(3):
        order = rng.sample(grid(), len(grid()))
        assert filled(tmp_path / f"b{k}", order, rng).equals(straight)
    keys = straight.select("arm", "seed", "lr", "site", "step").rows()
    assert keys == sorted(keys)


def test_order_check_catches_an_unsorted_frame(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(_table, "ordered", lambda frame, cells: frame)
    straight = filled(tmp_path / "a", grid())
    assert not filled(tmp_path / "b", grid()[::-1], random.Random(1)).equals(straight)


WORDS = st.sampled_from(["", "a", "B", "ab", "a.b", "layer10", "layer9", "ü", "~", "a\n"])
ROWS = st.tuples(st.integers(-3, 3), WORDS, WORDS, WORDS, st.sampled_from([-1.0, 0.0, 1.5, math.inf]), WORDS)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(st.integers(0, 4), ROWS), max_size=30), packed=st.booleans())
def test_the_order_is_that_of_a_sort_by_the_words(rows, packed: bool) -> None:
    """Also where the words are too many for one whole number; cells of no mark come first, by name."""
    cells = [cell_of(arm, seed, lr=lr) for arm, seed, lr in (("b", 1, 10), ("b", 0, 2), ("a", 1, 2))]
    names = [*(cell.id for cell in cells), "run.a", "zz"]
    records = [Record(names[cell], *row) for cell, row in rows]
    place = {cell.id: (1, cell.arm, cell.seed, cell.point["lr"]) for cell in cells}
    wanted = sorted(
        records, key=lambda r: (place.get(r.cell, (0,)), r.cell, r.probe, r.site, r.name, r.step, r.value, r.unit)
    )
    with pytest.MonkeyPatch.context() as patch:
        if not packed:
            patch.setattr(_table, "MOST_KEYS", 0)
        frame = _table.in_memory(_table.from_records(records), cells)
    assert frame.select("cell", "step", "probe", "site", "name", "value", "unit").rows() == [
        (r.cell, r.step, r.probe, r.site, r.name, r.value, r.unit) for r in wanted
    ]
    assert frame["arm"].to_list() == [place[r.cell][1] if r.cell in place else None for r in wanted]


def test_parts_of_a_rerun_are_the_same_bytes(tmp_path: Path) -> None:
    filled(tmp_path / "a", grid())
    filled(tmp_path / "b", grid()[::-1])
    parts = sorted((tmp_path / "a").glob("part-*"))
    assert len(parts) == len(grid())
    for part in parts:
        assert part.read_bytes() == (tmp_path / "b" / part.name).read_bytes()


def test_coordinates_of_many_kinds(store: Store) -> None:
    points = [
        {"lr": 1, "on": True, "act": "relu", "mixed": 1, "odd \"key'": 1},
        {"lr": 0.5, "on": False, "act": "tanh", "mixed": "a", "big": 2**80},
        {"mixed": [1, 2]},
    ]
    for seed, point in enumerate(points):
        cell = Cell("demo", "bn", seed, point)
        store.write_cell(cell, records_of(cell, 1), wall_s=0)
    frame = store.frame()
    assert frame["lr"].to_list() == [1.0, 0.5, None]
    assert frame["on"].to_list() == [True, False, None]
    assert frame["act"].to_list() == ["relu", "tanh", None]
    assert frame["mixed"].to_list() == ["1", '"a"', "[1,2]"]
    assert frame["odd \"key'"].to_list() == [1, None, None]
    assert json.loads(frame["big"].to_list()[1]) == 2**80


def test_coordinates_apart_in_case_alone_are_refused(store: Store) -> None:
    for seed, key in enumerate(("lr", "LR")):
        cell = cell_of("bn", seed, **{key: 1})
        store.write_cell(cell, records_of(cell), wall_s=0)
    assert store.frame()["lr"].to_list() != store.frame()["LR"].to_list()
    with pytest.raises(StoreError, match="case"):
        store.sql("SELECT * FROM records")


# -- filters and SQL


def test_filters(store: Store) -> None:
    cell = cell_of("bn", 0)
    records = [
        Record(cell.id, 0, probe, site, name, 1.0) for probe in "ab" for site in ("", "x") for name in ("n", "o'p")
    ]
    store.write_cell(cell, records, wall_s=0)
    memory = MemoryStore()
    memory.append(records)
    for chosen in (
        {"probe": "a"},
        {"site": ""},
        {"name": "o'p"},
        {"probe": "b", "site": "x", "name": "n"},
        {"name": "-"},
    ):
        expected = [r for r in records if all(getattr(r, key) == value for key, value in chosen.items())]
        assert store.frame(**chosen).height == memory.frame(**chosen).height == len(expected)


def test_sql(store: Store) -> None:
    for cell in grid():
        store.write_cell(cell, records_of(cell), wall_s=cell.seed)
    means = store.sql("SELECT arm, seed, avg(value) AS mean FROM records GROUP BY ALL ORDER BY arm, seed")
    expected = store.frame().group_by("arm", "seed").agg(pl.col("value").mean().alias("mean")).sort("arm", "seed")
    assert means["mean"].to_list() == pytest.approx(expected["mean"].to_list())
    assert store.sql("SELECT sum(wall_s) AS s FROM cells")["s"].item() == 2 * 2 * 12
    odd = store.sql("SELECT 'nan'::DOUBLE AS a, NULL::DOUBLE AS b, NULL::VARCHAR AS c, [1, 2] AS d, 3::TINYINT AS e")
    assert math.isnan(odd["a"].item())
    assert odd["b"].item() is None
    assert odd["c"].item() is None
    assert list(odd["d"].item()) == [1, 2]
    assert odd["e"].item() == 3
    mixed = store.sql("SELECT unnest([1.5, NULL, 'nan'::DOUBLE]) AS a")["a"]
    assert mixed.null_count() == 1
    assert mixed.is_nan().sum() == 1


@pytest.mark.parametrize("query", ["SELEC 1", "SELECT nothing FROM records", "SELECT 1 AS a, 2 AS a"])
def test_wrong_sql_is_one_line(store: Store, query: str) -> None:
    with pytest.raises(UsageError, match="query") as caught:
        store.sql(query)
    assert "\n" not in str(caught.value)


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
