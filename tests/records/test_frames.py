"""What is written is read: each value, in one order, filtered and asked in SQL."""

import json
import math
import random
import struct
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from kit.stored_cells import CONFIG, cell_of, grid, records_of
from normscope._errors import StoreError, UsageError
from normscope.records import Cell, MemoryStore, Record, Store, _table  # white box: to plant a frame without order

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


def bits(value: float) -> bytes:
    return b"nan" if math.isnan(value) else struct.pack("<d", value)


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
