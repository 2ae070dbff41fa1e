"""Scale invariance: its laws hold in a small network, and the judge sees where one does not."""

import pytest

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.studies.claims.scale_invariance_auto_rate import DECAYS

SLUG = "scale-invariance-auto-rate"
STUDY = studies.get(SLUG)
SETTLED = ("rotation", "equilibrium")
LAWS = {"gradient_slope": -1.0, "curvature_slope": -2.0, "pythagoras": 1.0, "rotation": 1.0, "equilibrium": 1.0}


def planted(cosine=1e-15, *, ends=(0.95, 0.2), **laws):
    plant = Plant(settings(SLUG))
    slow = plant.settings["lr"]
    for seed in plant.seeds:
        found = {"cosine": cosine} | {
            name: value * (1 + jitter(seed, 0.002 if name in SETTLED else 1e-13))
            for name, value in (LAWS | laws).items()
        }
        for name, value in found.items():
            for arm in DECAYS if name in SETTLED else ("identities",):
                plant.add(
                    arm, seed, name, value if arm != "decay" else 1.5 + jitter(seed, 0.01, 1), probe="scale", lr=slow
                )
        for salt, (arm, accuracy) in enumerate(zip(("invariant", "variant"), ends, strict=True)):
            plant.end(arm, seed, accuracy + jitter(seed, 0.01, salt), lr=30 * slow)
    return plant.evidence()


def words(**laws):
    """The word of every part, by its name."""
    return {part.name: part.outcome.value for part in STUDY.judge(planted(**laws)).parts}


@pytest.mark.parametrize(("cosine", "outcome"), [(1e-15, "exact"), (1e-5, "false")])
def test_the_judge_finds_what_was_planted(cosine, outcome):
    assert STUDY.judge(planted(cosine)).outcome.value == outcome


@pytest.mark.parametrize("name", [name for name in LAWS if name not in SETTLED])
@pytest.mark.parametrize("factor", [-1, 1.2, 1 + 1e-6])
def test_an_identity_that_does_not_hold_is_found(name, factor):
    right, wrong = (words(**more) for more in ({}, {name: factor * LAWS[name]}))
    identities = [other.replace("_", " ") for other in LAWS if other not in SETTLED]
    assert [right[other] for other in identities] == ["exact"] * 3
    assert [other for other in identities if wrong[other] == "false"] == [name.replace("_", " ")]


@pytest.mark.parametrize("name", SETTLED)
@pytest.mark.parametrize("factor", [0.5, 1.2])
def test_the_equilibrium_is_judged_for_each_kind_of_labels(name, factor):
    right, wrong = (words(**more) for more in ({}, {name: factor}))
    # With right labels both laws of the equilibrium are planted as failing.
    assert [right[f"{name}, {labels}"] for labels in DECAYS.values()] == ["opposite", "holds"]
    assert [wrong[f"{name}, {labels}"] for labels in DECAYS.values()] == ["opposite", "opposite"]


@pytest.mark.parametrize(
    ("ends", "outcome"), [((0.95, 0.2), "holds"), ((0.2, 0.95), "opposite"), ((0.9, 0.9), "no effect that matters")]
)
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
