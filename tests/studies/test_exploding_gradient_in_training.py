"""Gradients that explode at the start: whether they are found equalised, and how deep a network trains."""

import math

import pytest
from planted import Plant, jitter, outcomes
from small import cell_records, settings, values

from normscope import studies
from normscope.studies.lab.chain import theory

SLUG = "exploding-gradient-in-training"
STUDY = studies.get(SLUG)


def planted(start=100.0, end=2.0, *, deepest=40):
    plant = Plant(settings(SLUG, depths=[5, 10, 20, 40, 80], judged=20, batches=[128]))
    for seed in plant.seeds:
        for depth in plant.settings["depths"]:
            for step, value in ((0, start), (20, end)):
                value *= math.exp(jitter(seed, 0.05, step))
                where = {"probe": "relative_gradient", "step": step, "depth": depth, "batch": 128}
                plant.add("batch", seed, "spread", value, **where)
            plant.end("batch", seed, 0.9 if depth <= deepest else 0.1, depth=depth, batch=128)
    return plant.evidence()


@pytest.mark.parametrize(
    ("start", "end", "outcome"),
    [(100, 2, "supported"), (100, 50, "refuted"), (2, 100, "refuted"), (100, 100**0.3, "inconclusive")],
)
def test_the_judge_finds_what_was_planted(start, end, outcome):
    assert STUDY.judge(planted(start, end)).outcome.value == outcome


@pytest.mark.parametrize(("deepest", "outcome"), [(40, "supported"), (10, "refuted"), (80, "refuted")])
def test_the_trainable_depth_is_held_against_both_ends(deepest, outcome):
    assert outcomes(STUDY.judge(planted(deepest=deepest)), "nearer end of 10 to 24") == {outcome}


def test_the_spread_is_that_of_theory_at_first_and_gone_after_twenty_steps():
    net = {"name": "mlp", "width": 48}
    records = cell_records(SLUG, "batch", {"depth": 12}, network=net, depths=[12], judged=12, batches=[64], train=None)
    spread = {r.step: r.value for r in records if r.name == "spread"}
    assert set(spread) == {0, 1, 5, 20}
    assert math.log(spread[0]) == pytest.approx(math.log(theory("relu", 64) ** 5.5), rel=0.35)
    assert spread[20] < spread[0] ** 0.7
    assert len(values(records, "relative")) == 4 * 12
