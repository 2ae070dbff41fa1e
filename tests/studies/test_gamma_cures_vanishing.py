"""Gamma: both conditions decide, and scaling an inner gamma does nothing before a rectifier and a norm."""

import pytest

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import cell_records, settings, values
from normscope import studies

SLUG = "gamma-cures-vanishing"
STUDY = studies.get(SLUG)


def planted(fixed=80, learnt=40, gamma=1.3, *, none=119, euler=1e-13):
    plant = Plant(settings(SLUG, activations=["relu", "sigmoid"], steps=120))
    for seed in plant.seeds:
        for activation in plant.settings["activations"]:
            for salt, (arm, time) in enumerate({"fixed": fixed, "learnt": learnt, "none": none}.items()):
                plant.reach(arm, seed, round(time + jitter(seed, 1, salt)), 120, activation=activation)
            where = {"probe": "gamma", "activation": activation}
            plant.add("learnt", seed, "mean", gamma + jitter(seed, 0.02), step=120, **where)
            plant.add("learnt", seed, "invariance", 1e-13, **where)
            plant.add("learnt", seed, "euler", euler, **where)
    return plant.evidence()


@pytest.mark.parametrize(
    ("fixed", "learnt", "gamma", "outcome"),
    [
        (80, 40, 1.3, "supported"),
        (80, 40, 0.8, "refuted"),  # fast, but not by scaling up
        (40, 40, 1.3, "refuted"),
        (40, 80, 1.3, "refuted"),  # the other way round
        (80, 70, 1.3, "inconclusive"),
        (80, 40, 1.0, "inconclusive"),
    ],
)
def test_the_judge_finds_what_was_planted(fixed, learnt, gamma, outcome):
    assert STUDY.judge(planted(fixed, learnt, gamma)).outcome.value == outcome


@pytest.mark.parametrize(("none", "outcome"), [(119, "supported"), (20, "refuted")])
def test_what_normalization_gives_without_gamma_is_told_apart(none, outcome):
    assert outcomes(STUDY.judge(planted(none=none)), "no batch norm over gamma fixed") == {outcome}


def test_an_identity_that_fails_is_found():
    assert outcomes(STUDY.judge(planted(euler=1e-3)), "add to zero") == {"refuted"}


@pytest.mark.trains
def test_scaling_an_inner_gamma_does_nothing_with_rectifiers_and_something_with_tanh():
    relu, tanh = (cell_records(SLUG, "learnt", {"activation": name}) for name in ("relu", "tanh"))
    assert values(relu, "invariance")[0] < 1e-9
    assert values(relu, "euler")[0] < 1e-9
    assert values(relu, "sensitivity") == pytest.approx([1.0] * 4)
    assert values(tanh, "invariance")[0] > 1e-2
    assert values(tanh, "euler")[0] > 1e-3


@pytest.mark.trains
def test_a_fixed_gamma_stays():
    assert values(cell_records(SLUG, "fixed", {"activation": "relu"}), "mean") == [1.0]
    assert values(cell_records(SLUG, "learnt", {"activation": "relu"}), "mean") != [1.0]
