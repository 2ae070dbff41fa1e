"""Gamma and beta before a linear layer: the algebra is exact where it is, and its judge sees where it is not."""

import pytest

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.studies.claims.affine_before_linear_useless import PLACES, SIZES

SLUG = "affine-before-linear-useless"
STUDY = studies.get(SLUG)


def planted(linear=1e-16, valid=1e-16, *, gain=0.0, slow=1.0):
    plant = Plant(settings(SLUG, steps=60))
    for seed in plant.seeds:
        found = {"linear": linear, "valid": valid, "padded": 0.3, "rectified_gamma": 1e-16}
        found |= {f"border_{size}": 1 - ((size - 2) / size) ** 2 for size in SIZES}
        for name, value in found.items():
            plant.add("algebra", seed, name, value, probe="algebra", place="none")
        for place in PLACES:
            for salt, arm in enumerate(STUDY.ARMS):
                both = arm == "gamma and beta"
                plant.end(arm, seed, 0.95 + gain * both + jitter(seed, 0.0005, salt), step=60, place=place)
                steps = (30 if both else 30 * slow) + jitter(seed, 0.6, salt + 9)
                plant.reach(arm, seed, round(steps), 60, place=place)
    return plant.evidence()


@pytest.mark.parametrize(
    ("linear", "valid", "outcome"),
    [(1e-16, 1e-16, "exact"), (1e-3, 1e-16, "false"), (1e-16, 1e-3, "false")],
)
def test_the_judge_finds_what_was_planted(linear, valid, outcome):
    assert STUDY.judge(planted(linear, valid)).outcome.value == outcome


@pytest.mark.parametrize(("gain", "outcome"), [(0.0, "holds"), (0.03, "opposite"), (-0.03, "opposite")])
def test_dynamics_that_differ_either_way_are_found(gain, outcome):
    assert outcomes(STUDY.judge(planted(gain=gain)), "Test accuracy at the end") == {outcome}


@pytest.mark.parametrize(("slow", "outcome"), [(1.0, "holds"), (1.5, "opposite"), (0.5, "opposite")])
def test_speeds_that_differ_either_way_are_found(slow, outcome):
    assert outcomes(STUDY.judge(planted(slow=slow)), "difference to the speed") == {outcome}


def test_padding_is_where_it_fails():
    assert outcomes(STUDY.judge(planted()), "zero-padded convolution") == {"false"}


def test_the_algebra_is_exact_but_at_padded_borders():
    records = cell_records(SLUG, "algebra")
    assert max(values(records, name)[0] for name in ("linear", "valid", "rectified_gamma")) < 1e-12
    assert values(records, "padded")[0] > 0.01
    for size in SIZES:
        assert values(records, f"border_{size}") == pytest.approx([1 - ((size - 2) / size) ** 2], abs=1e-9)
