"""Rules that judges share, each on numbers whose answer is known."""

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from kit.planted_evidence import Plant, jitter
from normscope import studies
from normscope._errors import DataError
from normscope.records import Outcome
from normscope.stats import TWO_LOOKS_LEVEL, two_looks
from normscope.studies import Best, Contrast, Quantity, accuracy, steps_to


def test_best_rate_is_that_of_least_validation_loss_and_no_diverged_run():
    plant = Plant({}, seeds=3)
    for seed in plant.seeds:
        for lr, loss in ((0.1, 0.5), (0.3, 0.2), (1.0, 0.1)):
            plant.add("a", seed, "loss", 1.0, lr=lr)
            if not (lr == 1.0 and seed == 1):  # one seed diverged there
                plant.add("a", seed, "val_loss", loss, lr=lr)
            plant.add("b", seed, "loss", 1.0, lr=lr)
    assert Best("lr").of(plant.evidence(), arm="a") == 0.3
    assert Best("lr").of(plant.evidence(), arm="b") == 0.1  # nothing validated: the smallest


@pytest.mark.parametrize("target_step", [5, 6, 17])
def test_arrival_counts_steps_of_the_running_mean(target_step):
    plant = Plant({}, seeds=2)
    for seed in plant.seeds:
        plant.reach("a", seed, target_step + seed, 30)
    arrivals = plant.evidence().arrivals(0.8, horizon=30, arm="a")
    assert arrivals.steps.tolist() == [target_step, target_step + 1]
    assert not arrivals.missed.any()


def test_arrival_censors_what_never_arrives_and_what_diverged():
    plant = Plant({}, seeds=3)
    plant.reach("a", 0, 10, 30)
    plant.reach("a", 1, 99, 30)  # too late
    plant.reach("a", 2, 99, 7)  # stopped at step 7
    arrivals = plant.evidence().arrivals(0.8, horizon=30, arm="a")
    assert arrivals.steps.tolist() == [10, 30, 30]
    assert arrivals.missed.tolist() == [False, True, True]


def test_a_contrast_names_the_seeds_it_could_not_measure():
    plant = Plant({}, seeds=5)
    plant.add("a", 0, "x", 1)
    made, study = plant.evidence(), studies.get("fewer-iterations")

    def judged(values):
        return study.verdict_of(Contrast(Quantity("q", lambda _: np.array(values)), margin=0.2), made)

    some = judged([1.0, 1.1, math.nan, 1.2, 1.0])
    assert (some.effect.n, some.outcome) == (4, Outcome.HOLDS)
    assert "In 1 of 5 seeds there is no finite number." in some.reason
    none = judged([math.nan] * 5)
    assert (none.outcome, none.p_value, none.effect.n) == (Outcome.NOT_MEASURABLE, None, 0)
    assert none.why == "In all seeds there is no finite number"


def test_effects_that_are_not_one_a_seed_are_an_error():
    plant = Plant({}, seeds=4)
    plant.add("a", 0, "x", 1)
    for values in ([1.0] * 3, [1.0] * 5, [[1.0] * 4]):
        contrast = Contrast(Quantity("q", lambda _, values=values: np.array(values)), margin=1.0)
        with pytest.raises(DataError, match="for 4 seeds"):
            contrast.read(plant.evidence()).judge(1.0)
    with pytest.raises(DataError, match="twice"):
        replace(plant.evidence(), seeds=(0, 1, 1))


def raced(slow, fast, horizon=100):
    """Records of two arms that reach their target at known steps, on the way from no accuracy to all."""
    plant = Plant({"steps": horizon}, seeds=len(slow))
    for seed, (a, b) in enumerate(zip(slow, fast, strict=True)):
        plant.reach("slow", seed, a, horizon)
        plant.reach("fast", seed, b, horizon)
    return Contrast(steps_to(0.8), "slow", "fast", scale="log-ratio", margin=math.log(1.2)).read(plant.evidence())


def test_a_pair_of_runs_that_both_miss_the_target_gives_no_number():
    reading = raced([40, 999, 52, 47, 999], [20, 999, 25, 24, 26])
    assert np.isnan(reading.values).tolist() == [False, True, False, False, False]
    assert reading.values[4] == pytest.approx(math.log(100 / 26))  # one arm missed: a bound
    assert reading.bounded == "at least"
    assert reading.judge(0.0).outcome is Outcome.HOLDS
    assert reading.missing == "In 1 of 5 seeds neither side reached the target, so there is no number."


def test_two_arms_that_never_arrive_are_not_alike():
    """The kind of fault that read "supported, x1 (1 to 1), p 0": nothing was measured, so nothing is said."""
    plant = Plant({"steps": 60}, seeds=5)
    for seed in plant.seeds:
        for step in range(60):
            plant.add("best", seed, "accuracy", step / 60, step=step)
            plant.add("slow", seed, "accuracy", 0.1, step=step)
            plant.add("fast", seed, "accuracy", 0.1, step=step)
    for rule in ({"margin": 0.2}, {"equal_within": 0.2}, {"no_worse_than": 0.2}):
        reading = Contrast(steps_to(0.9), "slow", "fast", scale="log-ratio", **rule).read(plant.evidence())
        decision = reading.judge(0.0)
        assert (decision.outcome, decision.p_value) == (Outcome.NOT_MEASURABLE, None)
        assert decision.why == "In all seeds neither side reached the target, so there is no number"


def test_a_bound_never_says_that_two_arms_are_alike():
    slow, fast = [99, 999, 98, 97, 99], [96, 95, 97, 96, 95]
    reading = raced(slow, fast)
    assert reading.judge(0.0).outcome is Outcome.UNCLEAR
    assert "only bounded" in reading.judge(0.0).why
    assert raced([99, 98, 98, 97, 99], fast).judge(0.0).outcome is Outcome.NO_EFFECT


@pytest.mark.parametrize(("chance", "plateau"), [(0.1, 1.0), (0.1, 0.35), (0.5, 0.9)])
def test_the_target_follows_the_data(chance, plateau):
    """The same course of training, on easy data and on hard, takes the same steps to a share of the way."""
    plant = Plant({"steps": 50}, seeds=3)
    for seed in plant.seeds:
        for step in range(50):
            way = min(1.0, step / 20)
            plant.add("a", seed, "accuracy", chance + way * (plateau - chance), step=step, lr=0.1)
            plant.add("a", seed, "accuracy", chance, step=step, lr=9.0)  # another rate learns nothing
            plant.add("b", seed, "accuracy", chance + 0.5 * way * (plateau - chance), step=step, lr=0.1)
    evidence = plant.evidence()
    assert evidence.chance == pytest.approx(chance)
    assert evidence.target(0.9, arm="b", lr=9.0) == pytest.approx(chance + 0.9 * (plateau - chance))
    found = steps_to(0.9).read(evidence, arm="a", lr=0.1)
    assert found.steps.tolist() == [21, 21, 21]  # steps 16 to 20 have a mean of .9 of the way
    assert steps_to(0.9).read(evidence, arm="b", lr=0.1).missed.all()


@pytest.mark.parametrize(("first", "second"), [(0.1, 0.11), (1.0, 1.0)])
def test_two_arms_on_the_floor_or_the_ceiling_are_not_compared(first, second):
    plant = Plant({}, seeds=4)
    for seed in plant.seeds:
        plant.add("a", seed, "accuracy", 0.1)
        plant.add("a", seed, "test_accuracy", first + jitter(seed, 1e-6) * (first < 1))
        plant.add("b", seed, "test_accuracy", second)
    for rule in ({"margin": 0.01}, {"equal_within": 0.02}):
        decision = Contrast(accuracy(), "a", "b", **rule).read(plant.evidence()).judge(0.0)
        assert decision.outcome is Outcome.NOT_MEASURABLE
        assert "floor or ceiling" in decision.why


def test_a_run_that_may_be_extended_pays_for_its_second_look():
    values = np.random.default_rng(0).normal(1.0, 1.0, 10)
    plant = Plant({}, seeds=10)
    plant.add("a", 0, "x", 1)
    contrast = Contrast(Quantity("q", lambda _: values), margin=0.1)
    once, twice = (contrast.read(plant.evidence(level)).judge(0.0) for level in (0.95, TWO_LOOKS_LEVEL))
    assert twice.p_value == pytest.approx(two_looks(once.p_value))


def test_per_seed_is_in_the_order_of_seeds_whatever_the_order_of_rows():
    plant = Plant({}, seeds=4)
    for seed in (3, 0, 2):
        plant.add("a", seed, "x", 10 * seed + jitter(seed, 0))
    evidence = plant.evidence()
    values = evidence.per_seed(evidence.select(name="x"))
    assert values[[0, 2, 3]].tolist() == [0, 20, 30]
    assert math.isnan(values[1])
    assert evidence.per_seed(evidence.select(name="x"), pl.col("value").max())[3] == 30
