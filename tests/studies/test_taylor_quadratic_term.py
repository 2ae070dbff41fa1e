"""The safe step: measured rightly, compared the right way round."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kit.planted_evidence import Plant, jitter, outcomes
from kit.small_studies import cell_records, settings, values
from normscope import studies
from normscope.studies.claims.taylor_quadratic_term import (
    safe_steps,
)
from normscope.studies.lab.data import load

SLUG = "taylor-quadratic-term"
STUDY = studies.get(SLUG)


def planted(none=0.5, batch=2.5, *, rises=1.0, raised=(0.4, 0.1), inverse=None):
    plant = Plant(settings(SLUG, depths=[3], scales=[0.1, 1.0]))
    for seed in plant.seeds:
        for scale in plant.settings["scales"]:
            for salt, (arm, value) in enumerate({"none": none, "batch": batch}.items()):
                where = {"probe": "safe_step", "depth": 3, "scale": scale}
                plant.add(arm, seed, "safe_step", value * math.exp(jitter(seed, 0.1, salt)), **where)
                plant.add(arm, seed, "inverse_variance", none / batch if inverse is None else inverse, **where)
                plant.add(arm, seed, "rises", rises, **where)
        for arm, share in zip(("none", "batch"), raised, strict=True):
            for step in range(100):
                rose = float(step < round(100 * share) + (seed % 3 == (arm == "none")))
                plant.add(arm, seed, "raised", rose, probe="descent", step=step, depth=3, scale=1.0)
    return plant.evidence()


@pytest.mark.parametrize(("rises", "outcome"), [(1.0, "false"), (0.0, "exact")])
def test_the_judge_finds_whether_some_step_raises_the_loss(rises, outcome):
    verdict = STUDY.judge(planted(rises=rises))
    assert verdict.outcome.value == outcome
    assert f"in {100 * rises:g} % of the networks" in verdict.finding


@pytest.mark.parametrize(
    ("none", "batch", "outcome"),
    [
        (0.5, 2.5, "holds"),
        (1.0, 1.0, "no effect that matters"),
        (2.5, 0.5, "opposite"),
        (1.0, 1.5, "unclear"),
        (1.0, math.inf, "not measurable"),  # a step without bound is no number
    ],
)
def test_the_safe_step_is_compared_the_right_way_round(none, batch, outcome):
    assert outcomes(STUDY.judge(planted(none, batch)), "enlarges the step") == {outcome}


@pytest.mark.parametrize(
    ("raised", "outcome"), [((0.4, 0.1), "holds"), ((0.1, 0.4), "opposite"), ((0.2, 0.2), "no effect that matters")]
)
def test_steps_that_raise_the_loss_are_compared_the_right_way_round(raised, outcome):
    assert outcomes(STUDY.judge(planted(raised=raised)), "raise the loss of their own batch") == {outcome}


@pytest.mark.parametrize(("inverse", "outcome"), [(None, "holds"), (5.0, "opposite")])
def test_the_rule_of_the_note_is_held_against_the_measured_ratio(inverse, outcome):
    assert outcomes(STUDY.judge(planted(inverse=inverse)), "one over sigma squared") == {outcome}


def test_the_safe_step_is_that_of_the_curvature_along_the_gradient():
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 3).double(), torch.randn(20, 5).double(), torch.randint(3, (20,))
    cell = STUDY.cells("quick", [0], load("digits"))
    (safe,) = values(list(safe_steps(cell[0], model, x, y)), "safe_step")
    gradient = torch.autograd.grad(cross_entropy(model(x), y), list(model.parameters()))
    start = [p.detach().clone() for p in model.parameters()]

    def loss(step):
        with torch.no_grad():
            for p, at, g in zip(model.parameters(), start, gradient, strict=True):
                p.copy_(at - step * g)
            return float(cross_entropy(model(x), y))

    h = 1e-3
    bend = (loss(h) - 2 * loss(0) + loss(-h)) / h**2
    assert safe == pytest.approx(2 * sum(float(g.square().sum()) for g in gradient) / bend, rel=1e-4)


@pytest.mark.parametrize(("size", "rises"), [(10.0, 1.0), (0.01, 0.0)])
def test_a_step_raises_the_loss_of_large_inputs_and_not_of_small_inputs(size, rises):
    """The loss of a linear model is convex; its curvature grows with the square of its inputs."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 3, bias=False).double(), size * torch.randn(20, 5).double(), torch.arange(20) % 3
    cell = STUDY.cells("quick", [0], load("digits"))[0]
    assert values(list(safe_steps(cell, model, x, y)), "rises") == [rises]


@pytest.mark.trains
def test_large_weights_leave_a_small_step_without_batch_norm_alone():
    net, steps, inverse = {"name": "mlp", "width": 32}, {}, {}
    for arm in ("none", "batch"):
        for scale in (0.3, 3.0):
            where = {"depth": 3, "scale": scale}
            records = cell_records(SLUG, arm, where, network=net, depths=[3], scales=[0.3, 3.0], batch=128)
            steps[arm, scale] = values(records, "safe_step", "safe_step")[0]
            inverse[arm, scale] = values(records, "inverse_variance")[0]
    # Weights before a norm change the variance in front of it, and nothing behind it.
    assert inverse["batch", 0.3] / inverse["batch", 3.0] == pytest.approx(100, rel=0.02)
    assert inverse["none", 0.3] / inverse["none", 3.0] > 1000
    assert steps["none", 0.3] / steps["none", 3.0] > 50  # over ten seeds 355 to 2180
    assert steps["batch", 3.0] / steps["none", 3.0] > 10  # 52 to 284
