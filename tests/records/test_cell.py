"""Cells: one name for one configuration, and back from JSON."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from normscope._errors import UsageError
from normscope.records import Cell
from normscope.records.cell import RESERVED
from normscope.records.json import canonical, digest

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    SCALARS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
POINTS = st.dictionaries(st.text(max_size=6).filter(lambda key: key.lower() not in RESERVED), VALUES, max_size=4)


@given(POINTS, POINTS, st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_json_round_trip(point, settings_, seed) -> None:
    cell = Cell("demo", "bn", seed, point, settings_)
    back = Cell.from_json(cell.to_json())
    assert back == cell
    assert back.id == cell.id
    assert hash(back) == hash(cell)
    assert pickle.loads(pickle.dumps(cell)) == cell


@given(POINTS, st.randoms(use_true_random=False))
@settings(max_examples=50, deadline=None)
def test_order_of_keys_does_not_matter(point, random) -> None:
    shuffled = dict(random.sample(list(point.items()), len(point)))
    assert Cell("demo", "bn", 0, point).id == Cell("demo", "bn", 0, shuffled).id


def test_numbers_that_are_equal_have_one_name() -> None:
    a = Cell("demo", "bn", 3, {"lr": 1, "w": 0.1, "shape": (2, 3)})
    b = Cell("demo", "bn", np.int64(3), {"w": np.float64(0.1), "lr": 1.0, "shape": [2.0, 3]})
    assert a == b
    assert a.id == b.id


@pytest.mark.parametrize(
    "other",
    [
        Cell("other", "bn", 0, {"lr": 0.1}, {"steps": 5}),
        Cell("demo", "none", 0, {"lr": 0.1}, {"steps": 5}),
        Cell("demo", "bn", 1, {"lr": 0.1}, {"steps": 5}),
        Cell("demo", "bn", 0, {"lr": 0.2}, {"steps": 5}),
        Cell("demo", "bn", 0, {"lr": 0.1}, {"steps": 6}),
        Cell("demo", "bn", 0, {"lr": True}, {"steps": 5}),
        Cell("demo", "bn", 0, {"lr": "0.1"}, {"steps": 5}),
    ],
)
def test_everything_is_part_of_the_name(other) -> None:
    assert Cell("demo", "bn", 0, {"lr": 0.1}, {"steps": 5}).id != other.id


def test_name_is_stable() -> None:
    # Runs on disk are found again by this name: it may not change from version to version.
    cell = Cell("demo", "bn", 0, {"lr": 0.1}, {"steps": 5})
    assert cell.to_json() == '{"arm":"bn","point":{"lr":0.1},"seed":0,"settings":{"steps":5},"study":"demo"}'
    assert cell.id == "308654d02d7f1bd6"


def test_a_cell_cannot_be_changed_from_outside() -> None:
    point = {"layers": [1, 2]}
    cell = Cell("demo", "bn", 0, point)
    point["layers"].append(3)
    assert cell.point == {"layers": [1, 2]}
    assert cell.id == Cell("demo", "bn", 0, {"layers": [1, 2]}).id
    with pytest.raises(TypeError, match="id"):
        Cell("demo", "bn", 0, id="mine")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1: 2}, {"a": {3}}])
def test_what_has_no_json_form_is_refused(value) -> None:
    with pytest.raises(UsageError) as caught:
        Cell("demo", "bn", 0, {"x": value})
    assert "\n" not in str(caught.value)
    assert "point.x" in str(caught.value)


@pytest.mark.parametrize("key", RESERVED)
def test_column_names_are_taken(key) -> None:
    with pytest.raises(UsageError, match="record column"):
        Cell("demo", "bn", 0, {key: 1})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"study": "a"}', json.dumps({"study": 1})])
def test_not_a_cell(text) -> None:
    with pytest.raises(UsageError, match="not the JSON of a cell"):
        Cell.from_json(text)


def test_canonical_json_is_ascii_and_sorted() -> None:
    assert canonical({"b": "ü", "a": [1.0, 1.5]}) == '{"a":[1,1.5],"b":"\\u00fc"}'
    assert len(digest({})) == 16
