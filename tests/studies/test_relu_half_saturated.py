"""Inactive inputs of rectifiers: the share of theory, and a judge of what a positive beta brings."""

import dataclasses

import pytest
from scipy.stats import norm as normal

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.stats import TWO_LOOKS_LEVEL
from normscope.studies.claims.relu_half_saturated import FIXED, LEARNT

SLUG = "relu-half-saturated"
STUDY = studies.get(SLUG)


def planted(positive=0.97, zero=0.93, *, off=0.0, below=0.0, moved=0.1):
    plant = Plant(settings(SLUG, depths=[5]))
    for seed in plant.seeds:
        for salt, (arm, beta) in enumerate(FIXED.items()):
            value = positive if arm == "beta=1" else zero if arm == "beta=0" else 0.8
            plant.add(arm, seed, "accuracy", 0.1, depth=5)  # chance
            plant.end(arm, seed, value + jitter(seed, 0.001, salt), depth=5)
            where = {"probe": "rectifier", "site": "blocks.0.norm", "depth": 5}
            wrong = (below if beta < 0 else off) + jitter(seed, 0.002, salt)
            plant.add(arm, seed, "inactive", normal.cdf(-beta) + wrong, **where)
            plant.add(arm, seed, "inactive", 0.9, step=100, **where)  # after training: not what theory is of
        for arm, start in LEARNT.items():
            plant.add(arm, seed, "beta", start + moved + jitter(seed, 0.01), probe="rectifier", step=100, depth=5)
    return plant.evidence()


@pytest.mark.parametrize(
    ("positive", "zero", "outcome"),
    [
        (0.97, 0.93, "holds"),
        (0.95, 0.95, "no effect that matters"),
        (0.93, 0.97, "opposite"),
        (0.955, 0.95, "unclear"),
    ],
)
def test_the_judge_finds_what_was_planted(positive, zero, outcome):
    verdict = STUDY.judge(planted(positive, zero))
    assert verdict.outcome.value == outcome
    assert "with beta 1 than with beta 0" in verdict.finding


def test_a_second_look_is_paid_for():
    """An effect whose p-value is .03 at one look is not below .05 where the run may be extended."""
    evidence = planted(0.9562, 0.95)
    once, twice = (
        STUDY.judge(dataclasses.replace(evidence, level=level)) for level in (evidence.level, TWO_LOOKS_LEVEL)
    )
    assert once.outcome.value == "holds"
    assert once.p_value == pytest.approx(0.03, abs=0.005)
    assert twice.outcome.value == "unclear"
    assert twice.p_value > 0.05


@pytest.mark.parametrize(("off", "outcome"), [(0.0, "holds"), (0.05, "opposite"), (-0.05, "opposite")])
def test_a_share_that_is_off_is_found(off, outcome):
    assert outcomes(STUDY.judge(planted(off=off)), "betas from 0") == {outcome}
    assert outcomes(STUDY.judge(planted(off=off)), "betas below 0") == {"holds"}
    assert outcomes(STUDY.judge(planted(below=off)), "betas below 0") == {outcome}


@pytest.mark.parametrize(("moved", "outcome"), [(0.1, "holds"), (0.0, "no effect that matters"), (-0.1, "opposite")])
def test_where_beta_goes_is_told_apart(moved, outcome):
    assert outcomes(STUDY.judge(planted(moved=moved)), "Learning moves beta up") == {outcome}


@pytest.mark.parametrize(("arm", "beta"), [(arm, beta) for arm, beta in FIXED.items() if beta >= 0])
def test_the_share_at_initialization_is_that_of_a_normal_variable(arm, beta):
    net = {"network": {"name": "mlp", "width": 64}, "depths": [3], "steps": 1, "train": 600}
    records = cell_records(SLUG, arm, {"depth": 3}, **net)
    shares = [r.value for r in records if r.name == "inactive" and r.step == 0]
    assert len(shares) == 3
    assert sum(shares) / 3 == pytest.approx(normal.cdf(-beta), rel=0.25)  # over ten seeds within 12 %
    assert values(records, "beta") == [beta, beta]
    assert max(values(records, "dead")) == 0


@pytest.mark.trains
def test_below_beta_0_the_share_grows_with_depth():
    net = {"network": {"name": "mlp", "width": 64}, "depths": [3], "steps": 1, "train": 600}
    records = cell_records(SLUG, "beta=-1", {"depth": 3}, **net)
    shares = [r.value for r in records if r.name == "inactive" and r.step == 0]
    assert normal.cdf(1.0) == pytest.approx(shares[0], abs=0.05)
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > normal.cdf(1.0) + 0.05


def test_a_learnt_beta_moves_and_gamma_does_not():
    betas = values(cell_records(SLUG, "learnt from 1", {"depth": 2}), "beta")
    assert betas[0] == 1.0
    assert betas[1] != 1.0
