"""The edge of stability: each plateau at two over the learning rate, and both alike."""

import pytest

from kit.planted_evidence import Plant, jitter, words_by_name
from kit.small_studies import settings
from normscope import studies
from normscope.records import standing

SLUG = "beta-smoothness-is-edge-of-stability"
STUDY = studies.get(SLUG)


def planted(none=1.0, batch=1.0, *, rise=1.0):
    """Plateaus in units of two over the learning rate; without a norm the last reading is ``rise`` times the first."""
    made = settings(SLUG, steps=100)
    plant = Plant(made)
    for seed in plant.seeds:
        for arm, factor in (("none", none), ("batch", batch)):
            for lr in made["lrs"]:
                for step in (0, 80, 90, 100):
                    for name in ("sharpness", "beta_relative", "beta_absolute"):
                        value = 2 / lr * factor * (1 + jitter(seed, 0.01, step + 1000 * len(arm)))
                        value *= rise if arm == "none" and step == 100 else 1
                        plant.add(arm, seed, name, value, probe="descent", step=step, lr=lr)
                for name, value in {"diverged": 0, "loss": 0.1}.items():
                    plant.add(arm, seed, name, value, probe="descent", step=100, lr=lr)
    return plant.evidence()


@pytest.mark.parametrize(
    ("none", "batch", "outcome", "stands", "alike"),
    [
        (1, 1, "holds", "holds", "holds"),
        (0.01, 1, "holds", "depends on the norm", "opposite"),  # a flat plateau, far below the edge
        (1, 3, "opposite", "depends on the norm", "opposite"),
        (0.8, 0.8, "unclear", "unclear", "holds"),
        (1.15, 0.9, "holds", "holds", "opposite"),
    ],
)
def test_each_plateau_is_held_against_the_edge_and_against_the_other(none, batch, outcome, stands, alike):
    verdict = STUDY.judge(planted(none, batch))
    assert verdict.outcome.value == outcome
    assert standing(verdict) == stands
    assert words_by_name(verdict)["batch norm against none"] == alike


def test_a_run_that_still_rises_toward_the_edge_has_no_plateau():
    verdict = STUDY.judge(planted(none=0.3, rise=2.0))
    named = words_by_name(verdict)
    assert verdict.outcome.value == "holds"
    assert named["no norm"] == named["batch norm against none"] == "not measurable"


def test_slopes_and_the_time_at_the_edge_are_claims_of_their_own():
    named = words_by_name(STUDY.judge(planted(none=0.5)))
    assert named["slope, sharpness, none"] == named["slope, beta_absolute, batch"] == "holds"
    assert named["time at the edge"] == "not measurable"  # planted: in every seed the same
