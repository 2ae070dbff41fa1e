"""A budget: what is left out, in which order, and that it is kept by what was timed."""

import time

import pytest
from hypothesis import given, strategies as st

import normscope as ns
from kit import set_ups
from normscope._errors import UsageError
from normscope.comparing import ComparisonWarning, budget
from normscope.comparing.arms import Factory, arms_of
from normscope.comparing.budget import Pilot, expected, fullest, seconds_of
from normscope.comparing.cells import Clock
from normscope.comparing.plan import Plan, Wish

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


@pytest.fixture
def timed(monkeypatch):
    """Have every arm be timed with the same planted times: a step takes a second."""
    monkeypatch.setattr(budget, "pilot_of", lambda arm, plan: Pilot(0.1, 1.0, 0.1, dict.fromkeys(plan.readings, 2.0)))


@pytest.mark.usefixtures("timed")
def test_a_comparison_says_what_it_left_out_and_keeps_its_plan(tmp_path, monkeypatch):
    options = {"budget": "8min", "workers": 1, "questions": ["speed"], "out": tmp_path}
    with pytest.warns(
        ComparisonWarning, match="To keep the budget: .* steps a run instead of 200; 3 seeds instead of 5"
    ):
        found = ns.compare(set_ups.make_case, **options)
    assert found.plan.steps < 200
    assert found.evidence.seeds == (0, 1, 2)
    assert any("To keep the budget" in note for note in found.notes)
    monkeypatch.setattr(budget, "pilot_of", None)  # the plan is that of the run that lies there: nothing is timed anew
    for arms in (None, ["own", "none", "layer"]):
        with pytest.warns(ComparisonWarning, match="To keep the budget"):
            assert ns.compare(set_ups.make_case, arms, **options).plan == found.plan


@pytest.mark.usefixtures("timed")
def test_a_budget_that_is_too_short_says_what_is_needed(tmp_path):
    with pytest.raises(UsageError, match=r"a budget of 60 s is too short: at least \d+ s are needed with 1 worker"):
        ns.compare(set_ups.make_case, budget="1min", workers=1, questions=["speed"], out=tmp_path)
    assert not (tmp_path / "run.json").exists()


def test_the_parts_of_a_run_are_timed():
    (arm,) = [arm for arm in arms_of({"": Factory(set_ups.make_case)}, None) if arm.name == "own"]
    readings = {"gradient_flow": {"when": "often", "options": {}}, "curvature": {"when": "ends", "options": {}}}
    found = budget.pilot_of(arm, Plan(("gradients",), steps=20, readings=readings))
    assert 0 < found.step < 5
    assert found.evaluation > 0
    assert found.readings.keys() == readings.keys()
    assert found.readings["curvature"] > 3 * found.step


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_arms_are_timed_in_the_processes_that_run_them_and_the_longest_time_counts(workers, monkeypatch):
    """So that the start of the processes is over before the plan is made, and no guess."""
    asked, taken = [], iter(range(1, 100))

    class Engine:
        remote = False

        def run(self, work, tasks, *, gpus=0):
            asked.append(len(tasks))
            assert work.names(len(arms)) == f"a trial of arm {arms[0].name!r}"
            yield from map(work, tasks)

    monkeypatch.setattr(budget, "pilot_of", lambda arm, plan: Pilot(0.0, 1e-4 * next(taken), 0.0, {}))
    arms = arms_of({"": Factory(set_ups.make_case)}, None)
    plan = Plan(("speed",), seeds=5)
    wish = Wish(budget=1e6)
    chosen = budget.fitted(plan, arms, wish, Engine(), workers, began=time.perf_counter())
    (tasks,) = asked
    assert chosen.steps == plan.steps
    assert tasks >= workers
    assert tasks % len(arms) == 0
    # The last times of both arms are the longest: a budget that is short by a little of them leaves steps out.
    taken = iter(range(1, 100))
    needed = expected(plan, [Pilot(0.0, 1e-4 * each, 0.0, {}) for each in (tasks - 1, tasks)], workers)
    short = budget.fitted(plan, arms, Wish(budget=0.9 * needed / 0.85), Engine(), workers, began=time.perf_counter())
    assert short.steps < plan.steps


@given(pilots, st.floats(0.1, 3.0))
def test_a_run_that_takes_longer_does_so_in_all_parts(found, factor):
    for pilot in found:
        assert pilot.scaled(factor).seconds(PLAN) == pytest.approx(factor * pilot.seconds(PLAN))


def test_seeds_are_run_as_long_as_the_time_lasts_and_words_have_three(tmp_path, monkeypatch):
    passed = iter([True, False])
    monkeypatch.setattr(Clock, "allows", lambda self, seeds, seconds: next(passed))
    monkeypatch.setattr(
        budget, "pilot_of", lambda arm, plan: Pilot(1e-3, 1e-3, 1e-3, dict.fromkeys(plan.readings, 0.0))
    )
    options = {"budget": "1h", "steps": 3, "workers": 1, "questions": ["speed"], "out": tmp_path}
    found = ns.compare(set_ups.make_case, **options)
    assert found.evidence.seeds == (0, 1, 2, 3)
    assert "4 of the 5 seeds that were planned were run" in str(found)
    monkeypatch.setattr(Clock, "allows", lambda self, seeds, seconds: True)  # the same again goes on
    whole = ns.compare(set_ups.make_case, **options)
    assert whole.evidence.seeds == (0, 1, 2, 3, 4)
    assert "planned" not in str(whole)


def test_a_clock_leaves_time_for_the_arm_that_may_be_added():
    now = time.perf_counter()
    assert Clock(now, None).allows(3, 1e9)
    assert Clock(now, 100.0).allows(3, 90.0)
    assert not Clock(now, 100.0).allows(3, 99.0)
    assert not Clock(now, 100.0, rescue=0.5).allows(3, 60.0)  # 60 s, and half of that for each of four seeds
    assert not Clock(now - 50, 100.0).allows(3, 60.0)
