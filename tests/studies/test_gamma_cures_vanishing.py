"""Gamma: speed and size are told apart, and scaling an inner gamma does nothing before a rectifier and a norm."""

import pytest

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import cell_records, settings, values
from normscope import studies

SLUG = "gamma-cures-vanishing"
STUDY = studies.get(SLUG)


NEVER = 10_000


def planted(fixed=80, learnt=40, gamma=1.3, *, none=110, euler=1e-13):
    plant = Plant(settings(SLUG, activations=["relu", "sigmoid"], steps=120))
    for seed in plant.seeds:
        for activation in plant.settings["activations"]:
            # An arm that gets there at once sets the plateau that the others are asked for.
            for salt, (arm, time) in enumerate({"fixed": fixed, "learnt": learnt, "none": none, "from 2": 9}.items()):
                plant.reach(arm, seed, round(time + jitter(seed, 1, salt)), 120, activation=activation)
            where = {"probe": "gamma", "activation": activation}
            plant.add("learnt", seed, "mean", gamma + jitter(seed, 0.02), step=120, **where)
            plant.add("learnt", seed, "invariance", 1e-13, **where)
            plant.add("learnt", seed, "euler", euler, **where)
    return plant.evidence()


@pytest.mark.parametrize(
    ("fixed", "learnt", "outcome"),
    [
        (80, 40, "holds"),
        (80, 80, "no effect that matters"),
        (40, 80, "opposite"),
        (80, 66.5, "unclear"),
        (NEVER, 40, "holds"),  # at least so many times fewer
        (NEVER, NEVER, "not measurable"),
        (NEVER, 119, "unclear"),  # about as many as the run has, and only a bound
    ],
)
def test_the_judge_finds_what_was_planted(fixed, learnt, outcome):
    assert STUDY.judge(planted(fixed, learnt)).outcome.value == outcome


@pytest.mark.parametrize(
    ("gamma", "outcome"), [(1.3, "holds"), (0.8, "opposite"), (1.0, "no effect that matters"), (1.05, "unclear")]
)
def test_where_gamma_ends_has_a_claim_of_its_own(gamma, outcome):
    verdict = STUDY.judge(planted(80, 40, gamma))
    assert verdict.outcome.value == "holds"
    assert outcomes(verdict, "end above 1") == {outcome}


@pytest.mark.parametrize(
    ("none", "outcome"), [(110, "holds"), (20, "opposite"), (80, "no effect that matters"), (NEVER, "holds")]
)
def test_what_normalization_gives_without_gamma_is_told_apart(none, outcome):
    assert outcomes(STUDY.judge(planted(none=none)), "Normalization without gamma") == {outcome}


def test_an_identity_that_fails_is_found():
    assert outcomes(STUDY.judge(planted()), "add to zero") == {"exact"}
    assert outcomes(STUDY.judge(planted(euler=1e-3)), "add to zero") == {"false"}


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
