"""Interactions between the layers' steps: one learning rate, and only networks that train."""

import pytest

from kit.planted_evidence import Plant, jitter, words_by_name
from kit.small_studies import settings
from normscope import studies
from normscope.records import standing

SLUG = "high-order-effects"
STUDY = studies.get(SLUG)


def orders(*ratios, matched=None, trains=(0.7, 0.7), first=None):
    """Ratios without over with batch norm at the two scales; at equal decreases ``matched``, at first ``first``."""
    made = settings(SLUG)
    plant = Plant(made)
    for seed in plant.seeds:
        plant.add("chain", seed, "error", 1e-14, probe="chain", scale=1.0)
        for scale, ratio, end in zip(made["scales"], ratios, trains, strict=True):
            for arm in ("none", "batch", "last"):
                for step, value in ((0, 0.1), (50, end if arm == "none" else 0.7)):
                    plant.add(arm, seed, "accuracy", value + jitter(seed, 0.01, step), step=step, scale=scale)
                for name in ("interaction_size", "remainder", "third_order"):
                    for label in ("lr=0.03", *(f"c={c:g}" for c in made["decreases"])):
                        for step in (0, 2, 4):
                            factor = ratio if matched is None or label[0] == "l" else matched
                            factor = first if first and step == 0 else factor
                            factor = factor if arm == "none" else 1.0
                            value = 0.1 * factor * (1 + jitter(seed, 0.03, len(arm) + step))
                            plant.add(arm, seed, f"{name}@{label}", value, probe="interaction", step=step, scale=scale)
    return plant.evidence()


@pytest.mark.parametrize(
    ("ratios", "outcome", "stands"),
    [
        ((4, 4), "holds", "holds"),
        ((4, 1), "holds", "depends on the initial scale"),
        ((1, 4), "no effect that matters", "depends on the initial scale"),
        ((0.25, 0.25), "opposite", "opposite"),
        ((2, 4), "unclear", "unclear"),
    ],
)
def test_the_judge_finds_what_was_planted(ratios, outcome, stands):
    verdict = STUDY.judge(orders(*ratios))
    assert verdict.outcome.value == outcome
    assert standing(verdict) == stands
    assert words_by_name(verdict)["chain of numbers"] == "exact"


def test_the_headline_is_at_one_learning_rate_and_equal_decreases_are_also_tried():
    verdict = STUDY.judge(orders(4, 4, matched=1.0))
    assert verdict.name == "learning rate 0.03, 1 times He's"
    assert verdict.outcome.value == "holds"
    assert standing(verdict) == "depends on the matching"


def test_a_network_that_does_not_train_is_compared_at_the_first_step_alone():
    named = words_by_name(STUDY.judge(orders(4, 4, trains=(0.7, 0.1), first=4)))
    assert named["learning rate 0.03, 1 times He's"] == "holds"
    assert named["learning rate 0.03, 1.5 times He's"] == "not measurable"
    assert named["learning rate 0.03, 1.5 times He's, first step"] == "holds"


def test_the_first_step_is_that_alone():
    named = words_by_name(STUDY.judge(orders(4, 4, first=0.25)))
    assert named["learning rate 0.03, 1 times He's, first step"] == "opposite"
    assert named["remainder, learning rate 0.03, 1 times He's, first step"] == "opposite"


def test_the_judged_decrease_stands_behind_the_learning_rate_and_before_the_others_in_order():
    evidence = orders(4, 4)
    made = evidence.settings
    others = sorted(set(made["decreases"]) - {made["judged"]})
    assert others, "there is an order to hold"
    words = ["learning rate 0.03", *(f"predicted decrease of {100 * c:g} %" for c in (made["judged"], *others))]
    assert [table.title.partition(", ")[2] for table in STUDY.tables(evidence)] == words
