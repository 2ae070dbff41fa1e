"""Scale invariance: its laws hold in a small network, and the judge sees where one does not."""

import pytest

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.studies.claims.scale_invariance_auto_rate import DECAYS

SLUG = "scale-invariance-auto-rate"
STUDY = studies.get(SLUG)
LAWS = {"gradient_slope": -1.0, "curvature_slope": -2.0, "pythagoras": 1.0, "rotation": 1.0, "equilibrium": 1.0}


def planted(cosine=1e-15, *, ends=(0.95, 0.2), **laws):
    plant = Plant(settings(SLUG))
    slow = plant.settings["lr"]
    for seed in plant.seeds:
        found = {"cosine": cosine} | {name: value * (1 + jitter(seed, 0.002)) for name, value in (LAWS | laws).items()}
        for name, value in found.items():
            for arm in DECAYS if name in ("rotation", "equilibrium") else ("identities",):
                plant.add(arm, seed, name, value if arm != "decay" else 1.5, probe="scale", lr=slow)
        for arm, accuracy in zip(("invariant", "variant"), ends, strict=True):
            plant.end(arm, seed, accuracy + jitter(seed, 0.01), lr=30 * slow)
    return plant.evidence()


@pytest.mark.parametrize(("cosine", "outcome"), [(1e-15, "supported"), (1e-5, "refuted")])
def test_the_judge_finds_what_was_planted(cosine, outcome):
    assert STUDY.judge(planted(cosine)).outcome.value == outcome


@pytest.mark.parametrize("name", list(LAWS))
@pytest.mark.parametrize("factor", [-1, 1.2])
def test_a_law_that_does_not_hold_is_found(name, factor):
    right, wrong = (STUDY.judge(planted(**more)).parts[:7] for more in ({}, {name: factor * LAWS[name]}))
    # With right labels both laws of the equilibrium are planted as failing; they have parts of their own.
    assert {part.outcome.value for part in right if "labels right" in part.endpoint} == {"refuted"}
    laws = [[part.outcome.value for part in found if "labels right" not in part.endpoint] for found in (right, wrong)]
    assert laws[0] == ["supported"] * 5
    assert [law for law, one in zip(LAWS, laws[1], strict=True) if one == "refuted"] == [name]


@pytest.mark.parametrize(("ends", "outcome"), [((0.95, 0.2), "supported"), ((0.2, 0.95), "refuted")])
def test_which_parameters_break_is_told_apart(ends, outcome):
    assert outcomes(STUDY.judge(planted(ends=ends)), "weights before norms minus faster head") == {outcome}


@pytest.mark.trains
def test_slopes_cosine_and_growth_are_those_of_theory():
    records = cell_records(SLUG, "identities", network={"name": "mlp", "depth": 3, "width": 16}, steps=30)
    assert values(records, "cosine")[0] < 1e-12
    assert values(records, "gradient_slope")[0] == pytest.approx(-1, abs=1e-6)
    assert values(records, "curvature_slope")[0] == pytest.approx(-2, abs=1e-6)
    assert values(records, "pythagoras")[0] == pytest.approx(1, abs=1e-9)


@pytest.mark.trains
def test_with_weight_decay_rotation_and_norm_settle_where_theory_says():
    net = {"name": "mlp", "depth": 1, "width": 16}
    more = {"decayed_network": net, "decayed_steps": 900, "decay": 0.03, "train": None}
    records = cell_records(SLUG, "decay, wrong labels", **more)
    assert values(records, "rotation")[0] == pytest.approx(1, abs=0.1)
    assert values(records, "equilibrium")[0] == pytest.approx(1, abs=0.1)
