"""The noise of batch statistics: its claims do not decide each other, and population statistics have no noise."""

import math
import re
from dataclasses import replace

import polars as pl
import pytest
import torch
from torch import nn

from kit.planted_evidence import Plant, jitter, part
from kit.small_studies import settings
from normscope import layers, studies
from normscope.studies.claims.bn_noise_regularises import PopulationNormalized
from normscope.studies.lab.data import load
from normscope.studies.lab.models import Place

SLUG = "bn-noise-regularises"
STUDY = studies.get(SLUG)


def planted(best=0.85, population=0.80, slope=0.2, *, dropout=0.7, speed=(100, 30, 32)):
    plant = Plant(settings(SLUG, ghosts=[4, 16, 64], dropouts=[0.3], steps=120))
    for seed in plant.seeds:
        for size in (4, 16, 64):
            value = best if size == 16 else 0.7
            loss = math.exp(slope * math.log(size) + jitter(seed, 0.02, size))
            where = {"task": "noise", "size": size, "test_loss": loss}
            plant.end(f"ghost {size}", seed, value + jitter(seed, 0.003, size), **where)
        for salt, (arm, value) in enumerate({"population": population, "dropout 0.3": dropout}.items()):
            plant.end(arm, seed, value + jitter(seed, 0.003, salt), task="noise", size=0)
        for arm, time in zip(STUDY.ARMS, speed, strict=True):
            plant.reach(arm, seed, round(time + jitter(seed, 1, len(arm))), 120, task="speed", size=0)
    return plant.evidence()


@pytest.mark.parametrize(
    ("best", "population", "slope", "outcome"),
    [
        (0.85, 0.80, 0.2, "holds"),
        (0.80, 0.85, 0.2, "opposite"),
        (0.80, 0.80, 0.2, "no effect that matters"),
        (0.85, 0.80, -0.2, "holds"),  # the more noise, the higher the loss: another claim
        (0.805, 0.80, 0.0, "unclear"),
    ],
)
def test_the_judge_finds_what_was_planted(best, population, slope, outcome):
    verdict = STUDY.judge(planted(best, population, slope))
    assert verdict.outcome.value == outcome
    assert "ghost 16 (the best" in verdict.reason


@pytest.mark.parametrize(("slope", "outcome"), [(0.2, "holds"), (-0.2, "opposite"), (0.0, "no effect that matters")])
def test_the_slope_is_a_claim_of_its_own(slope, outcome):
    assert part(STUDY.judge(planted(slope=slope)), "slope").outcome.value == outcome


@pytest.mark.parametrize(
    ("speed", "outcome"),
    [
        ((100, 30, 32), "opposite"),  # without noise nearly all of the gain is kept
        ((100, 30, 99), "holds"),
        ((30, 100, 32), "not measurable"),  # no gain: nothing to ask about
        ((999, 999, 999), "not measurable"),
    ],
)
def test_only_is_judged_by_the_steps_without_noise(speed, outcome):
    assert part(STUDY.judge(planted(speed=speed)), "only").outcome.value == outcome


def test_the_share_of_the_gain_that_is_kept_is_said():
    assert re.search("9[789] % of the gain with noise", part(STUDY.judge(planted(speed=(100, 30, 32))), "only").finding)


def test_a_seed_without_a_test_loss_has_no_slope_and_the_others_have():
    evidence = planted()
    lost = (pl.col("seed") == 3) & (pl.col("name") == "test_loss") & (pl.col("arm") == "ghost 4")
    assert part(STUDY.judge(replace(evidence, frame=evidence.frame.filter(~lost))), "slope").effect.n == 9
    nothing = replace(evidence, frame=evidence.frame.filter(pl.col("name") != "test_loss"))
    assert part(STUDY.judge(nothing), "slope").outcome.value == "not measurable"
    assert STUDY.judge(replace(evidence, frame=evidence.frame.clear())).outcome.value == "not measurable"


@pytest.mark.parametrize(("dropout", "outcome"), [(0.7, "holds"), (0.95, "opposite")])
def test_dropout_is_compared_the_right_way_round(dropout, outcome):
    assert part(STUDY.judge(planted(dropout=dropout)), "dropout 0.3").outcome.value == outcome


def test_with_population_statistics_a_sample_does_not_see_its_batch():
    torch.manual_seed(0)
    x = torch.randn(60, 5)
    inner = nn.Sequential(nn.Linear(5, 4), layers.BatchNorm1d(4), nn.Linear(4, 3))
    model = PopulationNormalized(inner, x).train()
    assert torch.allclose(model(x[:20])[:7], model(x[:7]), atol=1e-6)
    inner.train()
    assert not torch.allclose(inner(x[:20])[:7], inner(x[:7]), atol=1e-3)
    assert torch.allclose(model(x), inner(x), atol=1e-5)  # of the whole set the two are one


def test_population_statistics_are_differentiated_through():
    torch.manual_seed(0)
    x = torch.randn(60, 5)
    inner = nn.Sequential(nn.Linear(5, 4), layers.BatchNorm1d(4))
    (PopulationNormalized(inner, x).train()(x) * torch.randn(60, 4)).sum().backward()
    weight = inner[0].weight
    assert abs(float((weight.detach() * weight.grad).sum())) < 1e-3 * float(weight.detach().norm() * weight.grad.norm())


def test_ghost_groups_are_normalized_each_by_itself():
    place = Place(index=0, features=3, spatial=False)
    cell = next(cell for cell in STUDY.cells("quick", [0], load("digits")) if cell.arm == "ghost 4")
    out = STUDY.norm(cell)(place).train()(torch.randn(12, 3) + 5)
    assert out.view(3, 4, 3).mean(1).abs().max() < 1e-5
