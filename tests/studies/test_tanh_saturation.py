"""Saturation of tanh: shares of a normal variable with batch norm, and saturation without vanishing."""

import math

import pytest

from kit.planted_evidence import Plant, jitter, words_by_name
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.records import standing
from normscope.studies.claims.tanh_saturation import FIXED, THEORY

SLUG = "tanh-saturation"
STUDY = studies.get(SLUG)
WIDE = {"network": {"name": "mlp", "depth": 3, "width": 100}, "train": 600}


def planted(batch=0.0027, none=0.75, *, small=None, learnt=0.95, fixed=0.95, ratio=0.1, flat=0.0364):
    """Shares at every scale, without norm ``small`` at all but the largest; first over last gradient without norm."""
    plant = Plant(settings(SLUG))
    for seed in plant.seeds:
        for scale in plant.settings["scales"]:
            lower = none if small is None or scale == plant.settings["judged"] else small
            for arm, share, gradient in (("batch", batch, 1.0), ("none", lower, ratio)):
                where = {"probe": "tanh", "scale": scale}
                found = {"beyond_3": share, "flat": flat, "slope": THEORY["slope"]}
                for name, value in found.items():
                    plant.add(arm, seed, name, value * (1 + jitter(seed, 0.03, len(arm))), **where)
                    plant.add(arm, seed, name, 1 - value, site="blocks.0.norm", **where)  # a layer is not all of them
                plant.add(arm, seed, "gradient_ratio", gradient * math.exp(jitter(seed, 0.05)), **where)
        at = plant.settings["trained"]
        for arm in STUDY.ARMS:
            value = fixed if arm == "gamma=2" else learnt if arm == "batch" else 0.8
            plant.add(arm, seed, "accuracy", 0.1, scale=at)  # chance
            plant.end(arm, seed, value + jitter(seed, 0.0005, len(arm)), scale=at)
    return plant.evidence()


@pytest.mark.parametrize(
    ("batch", "none", "outcome"),
    [
        (0.0027, 0.75, "holds"),
        (0.75, 0.0027, "opposite"),  # the arms swapped
        (0.0027, 0.05, "no effect that matters"),  # nothing to prevent
        (0.75, 0.75, "no effect that matters"),  # nothing prevented
        (0.0027, 0.1027, "unclear"),
    ],
)
def test_the_judge_finds_what_was_planted(batch, none, outcome):
    verdict = STUDY.judge(planted(batch, none))
    assert verdict.outcome.value == outcome
    assert verdict.name == "weights 10"
    assert STUDY.ARMS.keys() == {"none", "batch", *FIXED}


def test_where_small_weights_do_not_saturate_it_depends_on_the_scale():
    assert standing(STUDY.judge(planted(small=0.01))) == "depends on the initial scale"


@pytest.mark.parametrize(("ratio", "outcome"), [(0.1, "holds"), (1.0, "no effect that matters"), (8.0, "opposite")])
def test_that_gradients_vanish_is_a_claim_of_its_own(ratio, outcome):
    verdict = STUDY.judge(planted(ratio=ratio))
    assert verdict.outcome.value == "holds"
    found = next(part for part in verdict.parts if part.name == "vanishing, weights 10")
    assert found.outcome.value == outcome
    assert math.exp(found.effect.point) == pytest.approx(1 / ratio, rel=0.05)  # over the one step of two layers


@pytest.mark.parametrize(("learnt", "outcome"), [(0.95, "holds"), (0.97, "holds"), (0.93, "opposite")])
def test_learnt_gammas_are_held_against_the_best_fixed_one(learnt, outcome):
    verdict = STUDY.judge(planted(learnt=learnt))
    assert words_by_name(verdict)["learnt gamma"] == outcome
    assert any("gamma fixed at 2, the best" in part.endpoint for part in verdict.parts)


@pytest.mark.parametrize(("flat", "outcome"), [(0.0364, "holds"), (0.08, "opposite")])
def test_theory_is_matched_or_not(flat, outcome):
    assert words_by_name(STUDY.judge(planted(flat=flat)))["theory, flat"] == outcome


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
