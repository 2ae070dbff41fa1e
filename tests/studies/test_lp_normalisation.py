"""Lp norms: each may be faster than batch norm, and none much slower."""

import pytest

from kit.planted_evidence import Plant, jitter, words_by_name
from kit.small_studies import settings
from normscope import studies
from normscope.records import standing

SLUG = "lp-normalisation"
STUDY = studies.get(SLUG)


def planted(ends=0.9, spread=1.2533, **factors):
    """Steps to the target in units of batch norm's; batch norm's test accuracy is .9."""
    made = settings(SLUG, steps=400)
    plant = Plant(made)
    for seed in plant.seeds:
        for lr in made["lrs"]:
            for arm in ("none", "batch", "l1", "l2", "linf"):
                plant.reach(arm, seed, round(100 * factors.get(arm, 1) + jitter(seed, 2, len(arm))), 400, lr=lr)
                end = 0.9 if arm == "batch" else ends
                plant.end(arm, seed, end + jitter(seed, 0.001, len(arm)), step=401, train=1.0, lr=lr)
                plant.add(arm, seed, "spread", spread + jitter(seed, 0.001), probe="lp", lr=lr)
    return plant.evidence()


@pytest.mark.parametrize(
    ("factors", "outcome", "stands"),
    [
        ({}, "holds", "holds"),
        ({"l1": 0.5}, "holds", "holds"),  # faster does not count against it
        ({"linf": 2}, "holds", "depends on the norm"),
        ({"l1": 2}, "opposite", "depends on the norm"),
        ({"l1": 2, "l2": 2, "linf": 2}, "opposite", "opposite"),
        ({"l1": 1.2}, "unclear", "unclear"),
    ],
)
def test_every_norm_is_judged_by_itself_and_on_one_side(factors, outcome, stands):
    verdict = STUDY.judge(planted(**factors))
    assert verdict.outcome.value == outcome
    assert standing(verdict) == stands
    assert words_by_name(verdict)["linf"] == ("opposite" if "linf" in factors else "holds")


def test_where_no_arm_arrives_there_is_no_word():
    verdict = STUDY.judge(planted(**dict.fromkeys(("batch", "l1", "l2", "linf"), 9)))
    assert verdict.outcome.value == "not measurable"
    assert verdict.p_value is None
    assert "neither side reached the target" in verdict.why


@pytest.mark.parametrize(("ends", "outcome"), [(0.9, "holds"), (0.95, "holds"), (0.85, "opposite")])
def test_test_accuracy_is_a_claim_of_its_own(ends, outcome):
    named = words_by_name(STUDY.judge(planted(ends)))
    assert {named[f"accuracy, {arm}"] for arm in ("l1", "l2", "linf")} == {outcome}


@pytest.mark.parametrize(("spread", "outcome"), [(1.2533, "holds"), (1.1, "opposite")])
def test_theory_is_matched_or_not(spread, outcome):
    assert words_by_name(STUDY.judge(planted(spread=spread)))["l1 of Gaussian values"] == outcome
