"""Quantities, own best values and contrasts on records whose numbers are known by hand."""

import math

import numpy as np
import pytest

from kit.planted_evidence import Plant
from normscope import studies
from normscope._errors import UsageError
from normscope.records import Outcome
from normscope.studies import Best, Contrast, Quantity, accuracy, final, last, mean, mean_log, steps_to

STUDY = studies.get("fewer-iterations")
RIGHT = {"claim": "It is so.", "endpoint": "The effect", "reason": "Said."}


def planted(values, name="x", arm="a", **where):
    """One value a step of seed 0, ten times as much of seed 1; the rows backwards."""
    plant = Plant({"steps": 30}, seeds=2)
    for step, value in reversed(list(enumerate(values))):
        for seed in (1, 0):
            plant.add(arm, seed, name, value * 10**seed, step=step, **where)
    return plant


def test_a_diverged_run_has_none_right():
    plant = Plant({}, seeds=3)
    for seed, right in ((0, 0.9), (2, math.nan)):  # seed 1 has no record at all
        plant.add("a", seed, "test_accuracy", right)
    assert accuracy()(plant.evidence(), arm="a").tolist() == [0.9, 0.0, 0.0]


def test_the_last_record_is_that_of_the_last_step():
    evidence = planted([1, 2, 4]).evidence()
    assert last("x")(evidence, arm="a").tolist() == [4, 40]
    np.testing.assert_allclose(last("x", logs=True)(evidence, arm="a"), np.log([4, 40]))


def test_the_end_is_the_mean_over_a_window():
    values = [1000.0, *range(20)]
    assert final("x")(planted(values).evidence(), arm="a").tolist() == [9.5, 95]
    assert final("x", window=2)(planted(values).evidence(), arm="a").tolist() == [18.5, 185]


def test_means_end_before_a_step_and_logarithms_leave_out_what_has_none():
    evidence = planted([1, 3, 100], probe="p").evidence()
    assert mean("x", probe="p", before=2)(evidence, arm="a").tolist() == [2, 20]
    assert mean("x", probe="p")(evidence, arm="a").tolist() == pytest.approx([104 / 3, 1040 / 3])
    evidence = planted([-1, 0, math.inf, 2, 8, 5], probe="p").evidence()
    np.testing.assert_allclose(mean_log("x", probe="p", before=5)(evidence, arm="a"), np.log([4, 40]))


def test_a_target_is_reached_by_the_running_mean_of_five_steps():
    plant = Plant({"steps": 30}, seeds=2)
    plant.reach("a", 0, 12, 30)
    plant.reach("a", 1, 99, 30)
    for seed in (0, 1):
        plant.reach("best", seed, 5, 30)  # its plateau is 1
    evidence = plant.evidence()
    found = steps_to(0.8).read(evidence, arm="a")
    assert (found.steps.tolist(), found.missed.tolist(), found.horizon) == ([12, 30], [False, True], 30)
    reading = Contrast(steps_to(0.8), "a", 15.0, scale="log-ratio").read(evidence)
    np.testing.assert_allclose(reading.values, [math.log(12 / 15), math.nan])
    assert (reading.first.never, reading.second.never) == (1, 0)


def with_rates(scores):
    """Two seeds that share a number at each learning rate."""
    plant = Plant({}, seeds=2)
    for lr, values in scores.items():
        for seed, value in enumerate(values):
            plant.add("a", seed, "val_loss", value, lr=lr)
            plant.add("a", seed, "score", value, lr=lr)
    return plant.evidence()


@pytest.mark.parametrize(
    ("scores", "rule", "best"),
    [
        ({0.1: (3, 3), 0.5: (1, 4), 1.0: (5, 5)}, Best("lr"), 0.5),  # geometric means 3, 2, 5
        ({0.1: (2.4, 2.4), 0.5: (1, 4), 1.0: (0.5, 9)}, Best("lr"), 0.5),  # arithmetic means would choose 0.1
        ({0.1: (3, 3), 0.5: (1, math.nan), 1.0: (5, 5)}, Best("lr"), 0.1),  # a run diverged
        ({0.1: (math.nan, 1), 0.5: (math.nan, 1)}, Best("lr"), 0.1),  # everywhere: the smallest
        ({0.1: (3, 3), 0.5: (1, 4), 1.0: (2, 5)}, Best("lr", by=last("score"), most=True), 1.0),
        ({0.1: (-3, -3), 0.5: (-1, -4), 1.0: (5, 5)}, Best("lr", by=Quantity("s", last("score").read, logs=True)), 0.1),
    ],
)  # fmt: skip
def test_the_best_value_is_that_of_the_least_mean(scores, rule, best):
    assert rule.of(with_rates(scores), arm="a") == best


def judged(values, **rule):
    values = np.asarray(values, dtype=np.float64)
    plant = Plant({}, seeds=len(values))
    plant.add("a", 0, "x", 1)
    return STUDY.verdict_of(Contrast(Quantity("q", lambda _: values), **{**RIGHT, **rule}), plant.evidence())


NEAR = np.array([-2e-3, -1e-3, 0, 1e-3, 2e-3])


@pytest.mark.parametrize(
    ("effect", "rule", "outcome"),
    [
        (1.1, {"margin": 1.0}, "holds"),
        (-1.1, {"margin": 1.0}, "opposite"),
        (0.9, {"margin": 1.0}, "no effect that matters"),
        (1.0, {"margin": 1.0}, "unclear"),
        (0.1, {"margin": 0.0}, "holds"),
        (0.9, {"equal_within": 1.0}, "holds"),
        (-0.9, {"equal_within": 1.0}, "holds"),
        (1.1, {"equal_within": 1.0}, "opposite"),
        (-1.1, {"equal_within": 1.0}, "opposite"),
        (1.0, {"equal_within": 1.0}, "unclear"),
        (9.0, {"no_worse_than": 1.0}, "holds"),
        (-0.9, {"no_worse_than": 1.0}, "holds"),
        (-1.1, {"no_worse_than": 1.0}, "opposite"),
        (-1.0, {"no_worse_than": 1.0}, "unclear"),
        (0.9, {"exact_within": 1.0}, "exact"),
        (1.1, {"exact_within": 1.0}, "false"),
        (1.0, {"exact_within": 1.0}, "unclear"),  # some seeds within, some not
    ],
)
def test_rules(effect, rule, outcome):
    assert judged(effect + NEAR, **rule).outcome.value == outcome


def test_an_identity_needs_every_seed_and_has_no_p_value():
    lacking = judged([1e-9, 1e-9, math.nan], exact_within=1e-6)
    assert (lacking.outcome, lacking.p_value) == (Outcome.NOT_MEASURABLE, None)
    found = judged([1e-9, 1e-8, 1e-10], exact_within=1e-6)
    assert (found.effect.point, found.effect.low, found.margin, found.p_value) == (1e-8, 1e-10, 1e-6, None)
    assert found.amount == "largest error 1.0e−8"


@pytest.mark.parametrize("scale", ["difference", "log-ratio"])
@pytest.mark.parametrize("logs", [False, True])
def test_two_sides_become_one_effect(scale, logs):
    read = lambda _, arm: np.array({"a": [2.0, 4.0], "b": [1.0, 8.0]}[arm])  # noqa: E731
    plant = Plant({}, seeds=2)
    plant.add("a", 0, "x", 1)
    found = Contrast(Quantity("q", read, logs=logs), "a", "b", scale=scale).read(plant.evidence()).values
    expected = np.log([2, 0.5]) if scale == "log-ratio" and not logs else [1, -4]
    np.testing.assert_allclose(found, expected)


@pytest.mark.parametrize("effect", [2.0, 0.0, -2.0])
def test_a_premise_that_fails_leaves_nothing_to_say_either_way(effect):
    held = Contrast(Quantity("p", lambda _: 1 + NEAR), margin=0.5, claim="Noise shifts more.")
    failed = Contrast(Quantity("p", lambda _: NEAR), margin=0.5, claim="Batch norm gains.")
    assert judged(effect + NEAR, margin=1.0, premises=(held,)).outcome.decided
    found = judged(effect + NEAR, margin=1.0, premises=(held, failed))
    assert (found.outcome, found.p_value) == (Outcome.NOT_MEASURABLE, None)
    assert found.why.startswith("a premise is not met: Batch norm gains (seen: ")
    assert [premise.met for premise in found.premises] == [True, False]


def test_a_contrast_has_one_rule():
    with pytest.raises(UsageError, match="one rule"):
        Contrast(accuracy(), margin=1.0, equal_within=1.0)
    with pytest.raises(UsageError, match="positive"):
        Contrast(accuracy(), exact_within=0.0)
    with pytest.raises(UsageError, match="margin"):
        Contrast(accuracy(), margin=-0.1)
    with pytest.raises(UsageError, match="scale"):
        Contrast(accuracy(), scale="odds")
    with pytest.raises(UsageError, match=r"only \{effect\} is filled in"):
        Contrast(accuracy(), says="training takes {efect} steps")
