"""Moving averages against statistics estimated anew: which is better is told apart, and lag is found where it is."""

import pytest

from kit.planted_evidence import Plant, jitter
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.records import standing

SLUG = "train-test-statistics-gap"
STUDY = studies.get(SLUG)


def planted(anew=0.9, moving=0.8, *, long_memory=(0.9, 0.9)):
    """The accuracies at momentum 0.1, and those at 0.01."""
    plant = Plant(settings(SLUG))
    plant.chance()
    for seed in plant.seeds:
        for arm, point in STUDY.grid(plant.settings):
            pair = (anew, moving) if point["momentum"] == 0.1 else long_memory
            for name, value in zip(("anew", "moving"), pair, strict=True):
                for step in (20, 40):
                    value += jitter(seed, 0.001, len(name))
                    plant.add(arm, seed, name, value, probe="evaluated", step=step, **point)
    return plant.evidence()


@pytest.mark.parametrize(
    ("anew", "moving", "outcome"),
    [(0.9, 0.8, "holds"), (0.9, 0.9, "no effect that matters"), (0.8, 0.9, "opposite"), (0.905, 0.9, "unclear")],
)
def test_the_judge_finds_what_was_planted(anew, moving, outcome):
    assert STUDY.judge(planted(anew, moving)).outcome.value == outcome


def test_all_corners_are_tried_and_the_condition_that_separates_them_is_named():
    verdict = STUDY.judge(planted(0.9, 0.9, long_memory=(0.9, 0.8)))
    assert verdict.name == "lr 1, batch 64, momentum 0.1"
    assert verdict.outcome.value == "no effect that matters"
    words = {part.name: part.outcome.value for part in verdict.parts}
    assert len(words) == 7
    assert {name for name, word in words.items() if word == "holds"} == {n for n in words if "momentum 0.01" in n}
    assert standing(verdict) == "depends on the momentum"


@pytest.mark.trains
def test_averages_of_long_memory_lag_and_those_of_short_memory_do_not():
    gaps, data = {}, {"train": None, "test": None}
    for momentum in (0.1, 0.001):
        where = {"lr": 0.1, "batch": 64, "momentum": momentum}
        network = {"name": "mlp", "depth": 3, "width": 32}
        records = cell_records(SLUG, "batch", where, network=network, steps=81, momenta=[0.1, 0.001], **data)
        anew, moving = (values(records, name) for name in ("anew", "moving"))
        assert len(anew) == len(moving) == len(values(records, "own")) == 4
        gaps[momentum] = sum(a - m for a, m in zip(anew, moving, strict=True)) / 4
    assert gaps[0.001] > 0.05  # over ten seeds 0.17 to 0.28
    assert abs(gaps[0.1]) < 0.05  # up to 0.006
