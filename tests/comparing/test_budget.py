"""A budget: what is left out, in which order, and that it is kept by what was timed."""

import time

import pytest
from hypothesis import given, strategies as st

import normscope as ns
from kit import set_ups
from normscope._errors import UsageError
from normscope.comparing.budget import Pilot, expected, fullest, seconds_of
from normscope.comparing.plan import Plan

READINGS = {
    "gradient_flow": {"when": "often", "options": {}},
    "descent": {"when": "some", "options": {}},
    "curvature": {"when": "ends", "options": {}},
}
PLAN = Plan(("speed",), steps=200, seeds=5, rates=(1.0,), readings=READINGS)
FREE = (True, True)
times = st.floats(1e-4, 10)
pilots = st.lists(
    st.builds(
        Pilot,
        times,
        times,
        times,
        st.fixed_dictionaries(dict.fromkeys(READINGS, times)),
    ),
    min_size=2,
    max_size=4,
)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("20min", 1200), ("1.5h", 5400), (30, 30), ("2 m", 120), (0.5, 0.5)]
)
def test_budgets_are_times(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-3s", "0", "3 days", "1e3", "nan", "20minn"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(UsageError, match="a budget is a time such as"):
        seconds_of(text)


@given(pilots, st.floats(0.01, 1e6), st.integers(1, 8))
def test_a_plan_fits_or_is_the_smallest(found, seconds, workers):
    chosen = fullest(PLAN, found, seconds, workers, free=FREE)
    smallest = fullest(PLAN, found, 0.0, workers, free=FREE)
    assert expected(chosen, found, workers) <= seconds or chosen == smallest
    assert (smallest.seeds, smallest.steps, smallest.readings) == (3, 30, {})


@given(pilots, st.floats(0.01, 1e5), st.floats(1, 5), st.integers(1, 8))
def test_more_time_never_gives_less(found, seconds, more, workers):
    less, full = (fullest(PLAN, found, s, workers, free=FREE) for s in (seconds, seconds * more))
    assert full.steps >= less.steps
    assert full.seeds >= less.seeds
    assert full.readings.keys() >= less.readings.keys()


@given(pilots, st.floats(0.01, 1e5))
def test_what_was_asked_for_stays(found, seconds):
    chosen = fullest(PLAN, found, seconds, 2, free=(False, True))
    assert chosen.steps == PLAN.steps
    chosen = fullest(PLAN, found, seconds, 2, free=(True, False))
    assert chosen.seeds == PLAN.seeds


def test_the_costliest_probe_goes_first():
    found = [Pilot(0.1, 0.1, 0.1, {"gradient_flow": 0.1, "descent": 5.0, "curvature": 90.0})] * 2
    chosen = fullest(PLAN, found, 100.0, 2, free=FREE)
    assert list(chosen.readings) == ["gradient_flow", "descent"]
    assert chosen.readings["descent"]["when"] == "ends"


def test_a_comparison_says_what_it_left_out_and_keeps_its_plan(tmp_path):
    began = time.perf_counter()
    options = {"budget": 20, "workers": 1, "questions": ["speed"], "out": tmp_path}
    with pytest.warns(ns.comparing.ComparisonWarning, match="To keep the budget: .* steps a run instead of 200"):
        found = ns.compare(set_ups.make_slow_case, **options)
    took = time.perf_counter() - began
    assert found.plan.seeds >= 3
    assert found.plan.steps < 200
    again = time.perf_counter()
    with pytest.warns(ns.comparing.ComparisonWarning, match="To keep the budget"):
        assert ns.compare(set_ups.make_slow_case, **options).plan == found.plan
    assert time.perf_counter() - again < took


def test_a_budget_that_is_too_short_says_what_is_needed(tmp_path):
    with pytest.raises(UsageError, match=r"a budget of 1 s is too short: at least \d+ s are needed with 1 worker"):
        ns.compare(set_ups.make_slow_case, budget=1, workers=1, questions=["speed"], out=tmp_path)


@given(pilots, st.floats(0.1, 3.0))
def test_a_run_that_takes_longer_does_so_in_all_parts(found, factor):
    for pilot in found:
        assert pilot.scaled(factor).seconds(PLAN) == pytest.approx(factor * pilot.seconds(PLAN))
