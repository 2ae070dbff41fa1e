"""Saturation of tanh: shares of a normal variable with batch norm, and a judge that needs both halves."""

import math

import pytest

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.studies.claims.tanh_saturation import FIXED, THEORY

SLUG = "tanh-saturation"
STUDY = studies.get(SLUG)
WIDE = {"network": {"name": "mlp", "depth": 3, "width": 100}, "train": 600}


def planted(batch=0.0027, none=0.75, *, learnt=0.95, fixed=0.95, gradient=(1.0, 0.1), flat=0.0364):
    plant = Plant(settings(SLUG))
    for seed in plant.seeds:
        for scale in plant.settings["scales"]:
            for arm, share, ratio in (("batch", batch, gradient[0]), ("none", none, gradient[1])):
                where = {"probe": "tanh", "scale": scale}
                found = {"beyond_3": share, "flat": flat, "slope": THEORY["slope"]}
                for name, value in found.items():
                    plant.add(arm, seed, name, value * (1 + jitter(seed, 0.03)), **where)
                    plant.add(arm, seed, name, 1 - value, site="blocks.0.norm", **where)  # a layer is not all of them
                plant.add(arm, seed, "gradient_ratio", ratio * math.exp(jitter(seed, 0.05)), **where)
        at = plant.settings["trained"]
        for arm in STUDY.ARMS:
            value = fixed if arm == "gamma=2" else learnt if arm == "batch" else 0.8
            plant.end(arm, seed, value + jitter(seed, 0.0005, len(arm)), scale=at)
    return plant.evidence()


@pytest.mark.parametrize(
    ("batch", "none", "outcome"),
    [
        (0.0027, 0.75, "supported"),
        (0.75, 0.0027, "refuted"),  # the arms swapped
        (0.0027, 0.05, "refuted"),  # nothing to prevent
        (0.05, 0.75, "refuted"),  # nothing prevented
        (0.01, 0.75, "inconclusive"),
    ],
)
def test_the_judge_finds_what_was_planted(batch, none, outcome):
    assert STUDY.judge(planted(batch, none)).outcome.value == outcome
    assert STUDY.ARMS.keys() == {"none", "batch", *FIXED}


@pytest.mark.parametrize(("learnt", "outcome"), [(0.95, "supported"), (0.97, "supported"), (0.93, "refuted")])
def test_learnt_gammas_are_held_against_the_best_fixed_one(learnt, outcome):
    verdict = STUDY.judge(planted(learnt=learnt))
    assert outcomes(verdict, "best fixed gamma") == {outcome}
    assert any("gamma fixed at 2, the best" in part.reason for part in verdict.parts)


@pytest.mark.parametrize(("gradient", "outcome"), [((1.0, 0.1), "supported"), ((0.1, 1.0), "refuted")])
def test_gradients_are_compared_the_right_way_round(gradient, outcome):
    assert outcomes(STUDY.judge(planted(gradient=gradient)), "First over last") == {outcome}


@pytest.mark.parametrize(("flat", "outcome"), [(0.0364, "supported"), (0.08, "refuted")])
def test_theory_is_matched_or_not(flat, outcome):
    assert outcomes(STUDY.judge(planted(flat=flat)), "|tanh x| > 0.97") == {outcome}


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_with_batch_norm_the_shares_are_those_of_a_normal_variable_at_any_scale(scale):
    records = cell_records(SLUG, "batch", {"scale": scale}, **WIDE)
    for name, expected in THEORY.items():
        assert values(records, name, site="")[0] == pytest.approx(expected, abs=0.05 * expected + 0.008)


@pytest.mark.trains
def test_without_it_large_weights_saturate():
    records = cell_records(SLUG, "none", {"scale": 10.0}, **WIDE)
    assert values(records, "beyond_3", site="")[0] > 0.6
    assert values(records, "slope", site="")[0] < 0.1
