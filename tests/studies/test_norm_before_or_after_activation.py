"""Before or after the activation: each arm at its own best rate, in the right direction."""

import math

import pytest
import torch

from kit.planted_evidence import Plant, jitter, outcomes, part
from kit.small_studies import settings
from normscope import layers, studies
from normscope.records import standing
from normscope.studies.lab.norms import AfterRelu

SLUG = "norm-before-or-after-activation"
STUDY = studies.get(SLUG)


def planted(after=0.97, before=0.94, *, swap=False, affine=0.0, kappa=(100.0, 10.0)):
    """The accuracies are those at each arm's own best rate; with ``swap`` they are the other way round at the same."""
    plant = Plant(settings(SLUG, lrs=[0.1, 0.3]))
    plant.chance()
    for seed in plant.seeds:
        for salt, arm in enumerate(STUDY.ARMS):
            first = arm.startswith("before")
            own = (before if first else after) - (affine if "no affine" in arm else 0)
            same = (after if first else before) if swap else own
            for rate, value, loss in ((0.3, own, 0.2), (0.1, same, 0.4)):
                plant.end(arm, seed, value + jitter(seed, 0.0005, salt), val_loss=loss, lr=rate)
            for site in ("blocks.0.linear", "blocks.1.linear"):
                value = 1e6 if site.startswith("blocks.0") else kappa[not first] * math.exp(jitter(seed, 0.05, salt))
                plant.add(arm, seed, "condition_95", value, probe="conditioning", site=site, lr=0.1)
    return plant.evidence()


@pytest.mark.parametrize(
    ("after", "before", "outcome"),
    [(0.97, 0.94, "holds"), (0.95, 0.95, "no effect that matters"), (0.94, 0.97, "opposite"), (0.955, 0.95, "unclear")],
)
def test_the_judge_finds_what_was_planted(after, before, outcome):
    assert STUDY.judge(planted(after, before)).outcome.value == outcome


def test_own_best_rates_make_the_headline_and_the_same_rate_is_also_tried():
    verdict = STUDY.judge(planted(swap=True))
    assert verdict.outcome.value == "holds"
    assert part(verdict, "same rate").outcome.value == "opposite"
    assert standing(verdict) == "depends on the learning rate"


@pytest.mark.parametrize(("affine", "outcome"), [(0.0, "holds"), (0.03, "opposite"), (-0.03, "opposite")])
def test_whether_gamma_and_beta_matter_is_told_apart(affine, outcome):
    assert outcomes(STUDY.judge(planted(affine=affine)), "Gamma and beta do not matter") == {outcome}


@pytest.mark.parametrize(("kappa", "outcome"), [((100, 10), "holds"), ((10, 100), "opposite")])
def test_conditions_are_compared_the_right_way_round(kappa, outcome):
    assert outcomes(STUDY.judge(planted(kappa=kappa)), "Condition number") == {outcome}


def test_after_means_that_what_follows_is_normalized():
    torch.manual_seed(0)
    out = AfterRelu(layers.BatchNorm1d(6)).train()(torch.randn(500, 6))
    assert out.mean(0).abs().max() < 1e-5
    assert (out.var(0, correction=0) - 1).abs().max() < 1e-3
    assert (
        out.min(0).values == out.mode(0).values
    ).all()  # the rectifier stood before the norm: its zeros are one value
