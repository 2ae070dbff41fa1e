"""Series: every row arrives once, in order, and a long series is thinned without losing what stands out in it."""

import json
import math

import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from normscope.live import series as series_module
from normscope.live.series import SeriesCollection, kept_of


def frame(steps, values, cell="scope", name="norm", site="a") -> pl.DataFrame:
    count = len(steps)
    words = {"cell": cell, "probe": "p", "name": name, "site": site, "unit": "1"}
    columns = {key: pl.Series([word] * count, dtype=pl.String) for key, word in words.items()}
    return pl.DataFrame(columns | {"step": steps, "value": pl.Series(values, dtype=pl.Float64)})


def test_what_came_since_a_version_is_told_once() -> None:
    collection = SeriesCollection()
    collection.add(frame([0, 1], [1.0, 2.0]))
    first = collection.since(0)
    assert first == {
        "series": [[0, "scope", "p", "norm", "a", "1", "Gradient norm ‖∂L/∂W‖₂"]],
        "points": [[0, [0, 1], [1.0, 2.0]]],
    }
    seen = collection.version
    assert collection.since(seen) == {"series": [], "points": []}
    collection.add(frame([2], [3.0]))
    collection.add(frame([2], [4.0], site="b"))
    later = collection.since(seen)
    assert [made[4] for made in later["series"]] == ["b"]
    assert later["points"] == [[0, [2], [3.0]], [1, [2], [4.0]]]


def test_values_that_are_not_finite_are_words_of_json() -> None:
    collection = SeriesCollection()
    collection.add(frame([0, 1, 2, 3], [math.nan, math.inf, -math.inf, 1 / 3]))
    points = json.loads(json.dumps(collection.since(0), allow_nan=False))["points"]
    assert points == [[0, [0, 1, 2, 3], ["nan", "inf", "-inf", 0.333333]]]


@given(st.lists(st.floats(allow_nan=True), max_size=40))
@settings(deadline=None)
def test_thinning_keeps_the_extremes_and_the_last_value(values) -> None:
    kept = kept_of(values)
    assert kept == sorted(set(kept))
    assert len(kept) <= len(values) / 2 + 3
    finite = [value for value in values if math.isfinite(value)]
    there = [values[k] for k in kept]
    if finite:
        assert min(finite) in there
        if len(finite) == len(values):
            assert max(finite) in there
    if values:
        assert kept[-1] == len(values) - 1
    assert any(not math.isfinite(value) for value in there) == (len(finite) < len(values))


def test_a_spike_of_a_long_series_is_still_there_and_the_points_are_bounded() -> None:
    collection = SeriesCollection()
    for first in range(0, 20_000, 500):
        steps = list(range(first, first + 500))
        collection.add(frame(steps, [1e6 if step == 7777 else math.sin(step) for step in steps]))
    (_, steps, values) = collection.since(0)["points"][0]
    assert len(steps) <= 800
    assert steps == sorted(steps)
    assert values[steps.index(7777)] == 1e6
    assert steps[-1] == 19_999


def test_many_series_share_the_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series_module, "MOST_POINTS", 1000)
    collection = SeriesCollection()
    for site in range(30):
        collection.add(frame(list(range(1000)), [0.0] * 1000, site=str(site)))
    assert max(len(steps) for _, steps, _ in collection.since(0)["points"]) <= 100


def test_series_beyond_the_bound_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series_module, "MOST_SERIES", 3)
    collection = SeriesCollection()
    for _ in range(2):
        for site in range(5):
            collection.add(frame([0], [0.0], site=str(site)))
    assert len(collection.since(0)["series"]) == 3
    assert collection.dropped == 2


def test_points_of_a_grid_are_left_to_the_report() -> None:
    collection = SeriesCollection()
    for name in ("loss@s=0.1", "loss_min@same-step,s=3", "overlap_mean@train"):
        collection.add(frame([0], [0.0], name=name))
    assert [made[3] for made in collection.since(0)["series"]] == ["overlap_mean@train"]
