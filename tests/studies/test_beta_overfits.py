"""Beta and overfitting: the gap has a direction, and an idle bias makes no other run."""

import pytest

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import cell_records, settings, values
from normscope import studies

SLUG = "beta-overfits"
STUDY = studies.get(SLUG)


def planted(both=0.20, gamma=0.15, *, apart=1e-12):
    """``both`` and ``gamma``: training less test accuracy with and without beta."""
    plant = Plant(settings(SLUG, sizes=[100]))
    for seed in plant.seeds:
        for salt, arm in enumerate(STUDY.ARMS):
            gap = gamma if arm == "gamma" else both
            plant.end(arm, seed, 0.99 - gap + jitter(seed, 0.001, salt), examples=100)
            plant.add(arm, seed, "train_accuracy", 0.99, step=100, examples=100)
            loss = 0.5 + (apart if arm.startswith("bias") else 0)
            plant.add(arm, seed, "loss", loss, step=50, examples=100)
    return plant.evidence()


@pytest.mark.parametrize(
    ("both", "gamma", "outcome"),
    [(0.20, 0.15, "supported"), (0.15, 0.15, "refuted"), (0.15, 0.20, "refuted"), (0.155, 0.15, "inconclusive")],
)
def test_the_judge_finds_what_was_planted(both, gamma, outcome):
    assert STUDY.judge(planted(both, gamma)).outcome.value == outcome


@pytest.mark.parametrize(("both", "outcome"), [(0.15, "supported"), (0.20, "refuted"), (0.10, "refuted")])
def test_test_accuracies_that_differ_either_way_are_found(both, outcome):
    assert outcomes(STUDY.judge(planted(both)), "no difference to test accuracy") == {outcome}


@pytest.mark.parametrize(("apart", "outcome"), [(1e-12, "supported"), (1e-3, "refuted")])
def test_a_bias_that_does_something_is_found(apart, outcome):
    assert outcomes(STUDY.judge(planted(apart=apart)), "with and without the bias") == {outcome}


@pytest.mark.trains
def test_runs_with_and_without_the_bias_are_one():
    losses = [values(cell_records(SLUG, arm, {"examples": 60}), "loss") for arm in list(STUDY.ARMS)[:3]]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
    assert losses[0] != pytest.approx(losses[2], abs=1e-4)  # beta does do something
