"""Growth at initialization: theory's own values, chains that follow them, and a judge that tells directions apart."""

import math

import pytest

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.records import standing
from normscope.studies.claims.exploding_gradient_at_init import SCALES, SMALL
from normscope.studies.lab.chain import growth, rate, theory
from normscope.studies.lab.growth import growth_in_theory

SLUG = "exploding-gradient-at-init"
STUDY = studies.get(SLUG)


ALL_SCALES = (SMALL, *SCALES)


def planted(batch=None, *, off=1.0, scaled=(2.25, 1.49), small=(0.25, 1.49), drift=0.0):
    plant = Plant(settings(SLUG, batches=[64], judged=64))
    for seed in plant.seeds:
        for salt, arm in enumerate(STUDY.ARMS):
            value = growth_in_theory(arm, 64) * off if arm != "batch" or batch is None else batch
            wobble = math.exp(jitter(seed, 0.004, salt))
            plant.add(arm, seed, "rate", value * wobble, probe="chain", batch=64, scale=1.0)
        for scale in ALL_SCALES:
            for salt, (arm, value) in enumerate(zip(("none", "batch"), small if scale < 1 else scaled, strict=True)):
                wobble = math.exp(jitter(seed, 0.004, 30 + salt) + drift * scale)
                plant.add(arm, seed, "rate", value * wobble, probe="chain", batch=64, scale=scale)
    return plant.evidence()


@pytest.mark.parametrize(
    ("batch", "outcome"),
    [
        (None, "opposite"),
        (1 / 1.49, "holds"),
        (1.0, "no effect that matters"),
        (1.05, "unclear"),
        (1.1, "opposite"),
    ],
)
def test_the_judge_finds_what_was_planted_at_hes_scale(batch, outcome):
    assert STUDY.judge(planted(batch)).outcome.value == outcome


@pytest.mark.parametrize(
    ("scaled", "outcome", "stands"),
    [
        ((2.25, 1.49), "holds", "depends on the initial scale"),
        ((1.49, 2.25), "opposite", "opposite"),
        ((1.49, 1.49), "no effect that matters", "depends on the initial scale"),
    ],
)
def test_larger_weights_are_also_tried_and_the_claim_depends_on_them(scaled, outcome, stands):
    verdict = STUDY.judge(planted(scaled=scaled))
    found = {part.outcome.value for part in verdict.parts if part.claim == verdict.claim}
    assert found == {outcome}
    assert standing(verdict) == stands


@pytest.mark.parametrize(
    ("small", "outcome"),
    [((0.25, 1.49), "holds"), ((0.9, 1.49), "opposite"), ((0.5, 2.0), "no effect that matters")],
)
def test_vanishing_at_small_weights_has_a_claim_of_its_own(small, outcome):
    verdict = STUDY.judge(planted(small=small))
    assert outcomes(verdict, "from vanishing") == {outcome}
    assert all(part.claim != verdict.claim for part in verdict.parts if part.name == "scale 0.5")


@pytest.mark.parametrize(("drift", "outcome"), [(0.0, "exact"), (0.05, "false")])
def test_growth_that_depends_on_the_scale_is_found(drift, outcome):
    same = {"small": (0.25, 1.49), "scaled": (2.25, 1.49)}
    assert outcomes(STUDY.judge(planted(drift=drift, **same)), "does not depend on the scale") == {outcome}


@pytest.mark.parametrize(("off", "outcome"), [(1.0, "holds"), (1.1, "opposite"), (0.9, "opposite")])
def test_theory_is_matched_or_not(off, outcome):
    assert outcomes(STUDY.judge(planted(off=off)), "Measured over theoretical") == {outcome}


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"activation": "relu"}, math.pi / (math.pi - 1)),
        ({"activation": "relu", "shift": 0.5}, 1.2494),
        ({"activation": "relu", "shift": 1.0}, 1.1202),
        ({"activation": "relu", "shift": 2.0}, 1.0178),
        ({"activation": "tanh"}, 1.1778),
        ({"activation": "tanh", "gain": 0.5}, 1.0336),
        ({"activation": "tanh", "gain": 2.0}, 1.6116),
        ({"activation": "gelu"}, 1.3188),
        ({"activation": "linear"}, 1.0),
        ({"activation": "linear", "batch": 16}, 14 / 13),
        ({"activation": "relu", "batch": 4}, 3.084),
        ({"activation": "relu", "batch": 64}, 1.493),
        ({"activation": "relu", "batch": 1000}, 1.4685),
    ],
)
def test_theory_has_the_published_values(options, value):
    assert theory(**options) == pytest.approx(value, rel=3e-4)


@pytest.mark.parametrize(("activation", "value"), [("relu", 1.522), ("linear", 30 / 29)])
def test_a_chain_grows_as_theory_says(activation, value):
    assert rate(growth(0, width=256, depth=20, batch=32, activation=activation)) == pytest.approx(value, rel=0.03)


def test_without_norm_the_scale_decides_and_with_it_makes_no_difference():
    chain = {"width": 200, "depth": 14, "batch": 32}
    plain, larger = (growth(1, norm=False, scale=scale, **chain) for scale in (1.0, 1.5))
    assert rate(larger) / rate(plain) == pytest.approx(2.25, rel=1e-3)
    assert rate(plain) == pytest.approx(1.0, abs=0.15)
    normed, scaled = (growth(1, scale=scale, **chain) for scale in (1.0, 1.5))
    assert rate(scaled) == pytest.approx(rate(normed), rel=1e-3)


def test_a_cell_records_the_rate_of_its_own_gradients():
    records = cell_records(SLUG, "batch", {"batch": 16, "scale": 1.0})
    squares = values(records, "squared_gradient")
    assert values(records, "rate")[0] == pytest.approx(rate(squares))
    assert squares[-1] == 1
    assert squares[0] > 1
