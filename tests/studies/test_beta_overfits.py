"""Beta and overfitting: the gap has a direction, and an idle bias makes no other run."""

import pytest

from kit.planted_evidence import Plant, jitter, part
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.records import standing

SLUG = "beta-overfits"
STUDY = studies.get(SLUG)


def planted(both=0.20, gamma=0.15, *, neither=None, apart=1e-12):
    """``both`` and ``gamma``: training less test accuracy with and without beta; ``neither`` without both."""
    plant = Plant(settings(SLUG, sizes=[100]))
    plant.chance()
    for seed in plant.seeds:
        for salt, arm in enumerate(STUDY.ARMS):
            gap = {"gamma": gamma, "neither": both if neither is None else neither}.get(arm, both)
            plant.end(arm, seed, 0.99 - gap + jitter(seed, 0.001, salt), examples=100)
            plant.add(arm, seed, "train_accuracy", 0.99, step=100, examples=100)
            loss = 0.5 + (apart if arm.startswith("bias") else 0)
            plant.add(arm, seed, "loss", loss, step=50, examples=100)
    return plant.evidence()


@pytest.mark.parametrize(
    ("both", "gamma", "outcome"),
    [(0.20, 0.15, "holds"), (0.15, 0.15, "no effect that matters"), (0.15, 0.20, "opposite"), (0.155, 0.15, "unclear")],
)
def test_the_judge_finds_what_was_planted(both, gamma, outcome):
    assert STUDY.judge(planted(both, gamma)).outcome.value == outcome


@pytest.mark.parametrize(("both", "outcome"), [(0.15, "holds"), (0.20, "opposite"), (0.10, "opposite")])
def test_test_accuracies_that_differ_either_way_are_found(both, outcome):
    assert part(STUDY.judge(planted(both)), "accuracy, 100 examples").outcome.value == outcome


def test_a_gap_that_beta_makes_without_gamma_alone_depends_on_the_other_parameters():
    verdict = STUDY.judge(planted(0.15, 0.15, neither=0.10))
    assert verdict.outcome.value == "no effect that matters"
    assert part(verdict, "100 examples, without gamma").outcome.value == "holds"
    assert standing(verdict) == "depends on the other parameters"


@pytest.mark.parametrize(("apart", "outcome"), [(1e-12, "exact"), (1e-3, "false")])
def test_a_bias_that_does_something_is_found(apart, outcome):
    assert part(STUDY.judge(planted(apart=apart)), "bias").outcome.value == outcome


@pytest.mark.trains
def test_runs_with_and_without_the_bias_are_one():
    losses = [values(cell_records(SLUG, arm, {"examples": 60}), "loss") for arm in list(STUDY.ARMS)[:3]]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
    assert losses[0] != pytest.approx(losses[2], abs=1e-4)  # beta does do something
