"""The noise of batch statistics: both halves of the claim decide, and population statistics have no noise."""

import math

import pytest
import torch
from torch import nn

from kit.planted_evidence import Plant, jitter, outcomes
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
        (0.85, 0.80, 0.2, "supported"),
        (0.80, 0.85, 0.2, "refuted"),  # the other way round
        (0.80, 0.80, 0.2, "refuted"),
        (0.85, 0.80, -0.2, "refuted"),  # the more noise, the higher the loss
        (0.85, 0.80, 0.0, "inconclusive"),
    ],
)
def test_the_judge_finds_what_was_planted(best, population, slope, outcome):
    verdict = STUDY.judge(planted(best, population, slope))
    assert verdict.outcome.value == outcome
    assert "ghost 16 (the best" in verdict.reason


@pytest.mark.parametrize(
    ("speed", "outcome"),
    [
        ((100, 30, 32), "refuted"),  # without noise nearly all of the gain is kept
        ((100, 30, 99), "supported"),
        ((100, 30, 65), "inconclusive"),
        ((30, 100, 32), "inconclusive"),  # no gain: no share
    ],
)
def test_only_is_judged_by_what_is_kept_without_noise(speed, outcome):
    assert outcomes(STUDY.judge(planted(speed=speed)), "kept without noise") == {outcome}


@pytest.mark.parametrize(("dropout", "outcome"), [(0.7, "supported"), (0.95, "refuted")])
def test_dropout_is_compared_the_right_way_round(dropout, outcome):
    assert outcomes(STUDY.judge(planted(dropout=dropout)), "minus dropout 0.3") == {outcome}


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
