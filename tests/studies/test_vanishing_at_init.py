"""Vanishing at the start: chains follow their law, and the judge tells cured from made worse."""

import math

import pytest

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.records import answer, standing
from normscope.studies.lab.chain import growth, rate, theory, theory_without_norm

SLUG = "vanishing-at-init"
STUDY = studies.get(SLUG)


def planted(without=None, with_norm=1.48, *, drift=0.0):
    """Growth of scale squared without a norm, unless another is given, and with batch norm one that may drift."""
    plant = Plant(settings(SLUG))
    for seed in plant.seeds:
        for activation in plant.settings["activations"]:
            for scale in plant.settings["scales"]:
                rates = {"none": scale**2 if without is None else without, "batch": with_norm * math.exp(drift * scale)}
                for salt, (arm, value) in enumerate(rates.items()):
                    where = {"probe": "chain", "activation": activation, "scale": scale}
                    plant.add(arm, seed, "rate", value * math.exp(jitter(seed, 0.004, salt)), **where)
    return plant.evidence()


@pytest.mark.parametrize(
    ("without", "with_norm", "outcome"),
    [
        (0.25, 1.48, "holds"),
        (0.25, 0.9, "holds"),
        (0.9, 1.48, "opposite"),
        (0.5, 2.0, "no effect that matters"),  # equally far from 1
        (0.5, 1.905, "unclear"),
        (4.0, 1.48, "holds"),
    ],
)
def test_the_judge_finds_what_was_planted(without, with_norm, outcome):
    assert STUDY.judge(planted(without, with_norm)).outcome.value == outcome


def test_the_answer_says_that_vanishing_is_cured_and_an_explosion_left_and_depends_on_the_scale():
    verdict = STUDY.judge(planted())
    assert standing(verdict) == "depends on the initial scale"
    assert "shrinks to 0.25 of itself without a norm and grows 1.48 times with batch norm" in answer(verdict)
    assert "vanishing is cured, and a milder explosion is left" in answer(verdict)


def test_a_growth_of_one_is_said_to_keep_its_size():
    assert "keeps its size (1) with batch norm" in STUDY.judge(planted(0.25, 1.0)).finding
    assert outcomes(STUDY.judge(planted(0.25, 1.0)), "keeps its size") == {"holds"}
    assert outcomes(STUDY.judge(planted(0.25, 1.48)), "keeps its size") == {"opposite"}


@pytest.mark.parametrize(("drift", "outcome"), [(0.0, "exact"), (0.05, "false")])
def test_growth_that_depends_on_the_scale_is_found(drift, outcome):
    assert outcomes(STUDY.judge(planted(drift=drift)), "does not depend on the scale") == {outcome}


def test_without_records_nothing_is_measurable():
    evidence = planted()
    empty = type(evidence)(evidence.frame.clear(), evidence.settings, evidence.seeds)
    assert STUDY.judge(empty).outcome.value == "not measurable"


@pytest.mark.parametrize("scale", [0.5, 0.9, 2.0])
def test_a_linear_network_grows_by_the_square_of_its_scale(scale):
    chain = {"width": 200, "depth": 14, "batch": 32, "activation": "linear", "norm": False}
    squares = [growth(3, scale=at, **chain) for at in (1.0, scale)]
    # The scale comes out of every layer, so the law is exact between two scales of the same weights.
    assert rate(squares[1]) / rate(squares[0]) == pytest.approx(scale**2, rel=1e-4)
    assert rate(squares[0]) == pytest.approx(1, abs=0.1)
    assert theory_without_norm("linear", scale=scale, depth=14) == pytest.approx(scale**2, rel=1e-9)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_chain_without_a_norm_grows_as_theory_says(scale):
    assert theory_without_norm("relu", scale=scale, depth=20) == pytest.approx(scale**2, rel=1e-4)
    for activation in ("tanh", "sigmoid"):
        measured = rate(growth(1, width=256, depth=20, batch=64, activation=activation, norm=False, scale=scale))
        assert measured == pytest.approx(theory_without_norm(activation, scale=scale, depth=20), rel=0.05)


def test_small_pre_activations_leave_the_slope_at_zero_alone():
    # phi'(0) = 1 for tanh and 1/4 for a sigmoid (Glorot & Bengio 2010).
    assert theory_without_norm("tanh", scale=0.05, depth=12) == pytest.approx(0.05**2, rel=1e-2)
    assert theory_without_norm("sigmoid", scale=0.05, depth=12) == pytest.approx(0.05**2 / 16, rel=1e-2)


def test_a_cell_differs_by_its_arm_and_scale_as_the_law_says():
    where = {"activation": "relu"}
    small, usual = (values(cell_records(SLUG, "none", where | {"scale": scale}), "rate")[0] for scale in (0.5, 1.0))
    assert small / usual == pytest.approx(0.25, rel=1e-4)
    normed = [values(cell_records(SLUG, "batch", where | {"scale": scale}), "rate")[0] for scale in (0.5, 1.0)]
    assert normed[0] == pytest.approx(normed[1], rel=1e-4)
    assert normed[0] == pytest.approx(theory("relu", settings(SLUG)["batch"]), rel=0.25)  # 24 units wide
