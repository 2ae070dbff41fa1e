"""Conditioning: ratios the right way round, and the outlier of rectified inputs where theory has it."""

import math

import numpy as np
import pytest

from kit.planted_evidence import Plant, jitter, outcomes, words_by_name
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.studies.claims.conditioning import WIDTHS

SLUG = "conditioning"
STUDY = studies.get(SLUG)


def planted(none=100.0, before=20.0, *, after=4.0, off=1.0, fast=(30, 20), raw=75, normed=30):
    plant = Plant(settings(SLUG, steps=80))
    for seed in plant.seeds:
        kappas = {"none": none, "before": before, "after": after, "layer": 50.0}
        times = {"none": 30, "before": fast[0], "after": fast[1], "layer": 30}
        for arm in STUDY.ARMS:
            for index, site in enumerate(("blocks.0.linear", "blocks.1.linear", "head")):
                value = 1e6 if index == 0 else kappas[arm] * math.exp(jitter(seed, 0.05, index + 10 * len(arm)))
                plant.add(arm, seed, "condition_95", value, probe="conditioning", site=site, features="standardised")
            plant.reach(arm, seed, times[arm] + round(jitter(seed, 1, len(arm))), 80, features="standardised")
        for features, time in (("raw", raw), ("normed", normed)):
            plant.reach("none", seed, time + round(jitter(seed, 1, len(features) + 9)), 80, features=features)
        for width in WIDTHS:
            value = off * (1 + width / (math.pi - 1)) * math.exp(jitter(seed, 0.01))
            plant.add("outlier", seed, f"outlier_{width}", value, probe="outlier", features="none")
    return plant.evidence()


@pytest.mark.parametrize(
    ("none", "before", "outcome"),
    [(100, 20, "holds"), (50, 50, "no effect that matters"), (20, 100, "opposite"), (100, 50, "unclear")],
)
def test_the_judge_finds_what_was_planted(none, before, outcome):
    named = words_by_name(STUDY.judge(planted(none, before)))
    assert named["before the activation"] == outcome
    assert named["after the activation"] == "holds"  # a claim of its own


@pytest.mark.parametrize(("off", "outcome"), [(1.0, "holds"), (1.3, "opposite")])
def test_theory_is_matched_or_not(off, outcome):
    assert outcomes(STUDY.judge(planted(off=off)), "measured over expected") == {outcome}


@pytest.mark.parametrize(
    ("fast", "outcome"), [((30, 20), "holds"), ((30, 30), "no effect that matters"), ((20, 30), "opposite")]
)
def test_whether_the_better_conditioned_is_the_faster_is_told_apart(fast, outcome):
    assert words_by_name(STUDY.judge(planted(fast=fast)))["speed after against before"] == outcome


def test_where_neither_place_is_better_conditioned_speed_says_nothing():
    verdict = STUDY.judge(planted(after=20.0))
    assert words_by_name(verdict)["speed after against before"] == "not measurable"


@pytest.mark.parametrize(
    ("raw", "normed", "slow", "repaired", "as_fast"),
    [
        (75, 30, "holds", "holds", "holds"),
        (999, 30, "holds", "holds", "holds"),  # never gets there
        (75, 75, "holds", "no effect that matters", "opposite"),
        (30, 30, "no effect that matters", "no effect that matters", "holds"),
        (999, 999, "holds", "not measurable", "opposite"),
    ],
)
def test_units_slow_training_and_a_norm_on_them_repairs_it(raw, normed, slow, repaired, as_fast):
    named = words_by_name(STUDY.judge(planted(raw=raw, normed=normed)))
    found = [named[name] for name in ("raw units", "batch norm on raw units", "batch norm against standardising")]
    assert found == [slow, repaired, as_fast]


def test_the_outlier_is_that_of_theory():
    records = cell_records(SLUG, "outlier", samples=20000)
    for width in WIDTHS:
        assert values(records, f"outlier_{width}")[0] == pytest.approx(1 + width / (math.pi - 1), rel=0.03)


@pytest.mark.trains
def test_after_the_activation_inputs_are_better_conditioned_than_before():
    means = {}
    for arm in ("none", "before", "after"):
        records = cell_records(SLUG, arm, {"features": "standardised"}, batch=256, steps=1, train=None)
        found = [r.value for r in records if r.name == "condition_95" and not r.site.startswith("blocks.0")]
        means[arm] = float(np.mean(np.log(found)))
    assert means["after"] < means["before"] - 0.1  # over ten seeds by 0.47 to 0.78
