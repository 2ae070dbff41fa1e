"""Dropout before batch norm: the closed form, a cell that follows it, and what evaluation meets beside it."""

import math

import pytest
import torch

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.studies.claims.dropout_variance_shift import (
    WatchedDropout,
)

SLUG = "dropout-variance-shift"
STUDY = studies.get(SLUG)


def planted(off=0.0, *, met=0.5, again=0.95, running=0.9, noise=0.1):
    plant = Plant(settings(SLUG, keeps=[0.5, 0.9, 1.0]))
    for seed in plant.seeds:
        for keep in plant.settings["keeps"]:
            where = {"probe": "dropout", "keep": keep}
            wobble = jitter(seed, 0.02, round(10 * keep))
            found = {"log_ratio": off + wobble, "measured": 0.5 * math.exp(off + wobble), "theory": 0.5}
            found |= {"evaluation": met * math.exp(wobble)}
            found |= {"accuracy_again": again + 0.02 * noise * (-1) ** seed, "accuracy_running": running}
            for name, value in found.items():
                plant.add("dropout", seed, name, value, **where)
            plant.add("dropout", seed, "evaluation_layer", met, site="blocks.0.norm", **where)
    return plant.evidence()


@pytest.mark.parametrize(
    ("again", "running", "outcome"),
    [(0.95, 0.9, "holds"), (0.9, 0.95, "opposite"), (0.9, 0.9, "no effect that matters")],
)
def test_the_judge_finds_harm_where_it_was_planted(again, running, outcome):
    verdict = STUDY.judge(planted(again=again, running=running))
    assert verdict.outcome.value == outcome
    assert {part.outcome.value for part in verdict.parts if part.claim == verdict.claim} == {outcome}


def test_harm_that_is_small_beside_its_noise_is_unclear():
    verdict = STUDY.judge(planted(again=0.9, noise=1.0))
    assert verdict.outcome.value == "unclear"
    assert "seeds would" in verdict.why


@pytest.mark.parametrize(
    ("off", "outcome"), [(0.0, "holds"), (0.2, "opposite"), (-0.2, "opposite"), (0.045, "unclear")]
)
def test_the_ratio_is_that_of_theory_or_not(off, outcome):
    assert outcomes(STUDY.judge(planted(off)), "Measured over theoretical ratio") == {outcome}


@pytest.mark.parametrize(("met", "outcome"), [(0.5, "holds"), (1.0, "no effect that matters"), (2.0, "opposite")])
def test_a_shift_is_one_downward(met, outcome):
    assert outcomes(STUDY.judge(planted(met=met)), "Running variance over the variance in evaluation") == {outcome}


@pytest.mark.parametrize(("keep", "value"), [(0.9, 0.818), (0.7, 0.538), (0.5, 0.333)])
def test_the_closed_form_for_a_mean_as_large_as_the_deviation(keep, value):
    torch.manual_seed(0)
    watched, x = WatchedDropout(1 - keep).train(), 1 + torch.randn(200_000, 1)
    watched.watching = True
    ratio = float(x.var() / watched(x).var())
    v, square = (float(moment) for moment in watched.moments())
    assert v / (v + square * (1 / keep - 1)) == pytest.approx(value, rel=0.02)
    assert ratio == pytest.approx(value, rel=0.03)


@pytest.mark.trains
@pytest.mark.parametrize("keep", [0.5, 0.8])
def test_in_a_trained_network_the_ratio_is_that_of_theory(keep):
    net = {"network": {"name": "mlp", "depth": 3, "width": 32}, "steps": 60, "settle": 60, "train": None}
    records = cell_records(SLUG, "dropout", {"keep": keep}, keeps=[keep], **net)
    assert abs(values(records, "log_ratio")[0]) < 0.04
    theory, met = values(records, "theory")[0], values(records, "evaluation")[0]
    first, *_, last = values(records, "evaluation_layer")
    assert theory < 0.9
    assert met < theory  # the layers before have lost their dropout too
    assert last < first


@pytest.mark.trains
def test_without_dropout_nothing_is_shifted():
    records = cell_records(SLUG, "dropout", {"keep": 1.0}, settle=60, train=None)
    assert values(records, "theory") == [1.0]
    assert values(records, "measured")[0] == pytest.approx(1, rel=1e-5)
    assert values(records, "evaluation")[0] == pytest.approx(1, rel=0.15)  # over ten seeds 0.955 to 1.043
