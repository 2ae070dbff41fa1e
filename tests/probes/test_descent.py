"""Descent against explicit Hessians, copied models and closed forms."""

import copy
import math

import pytest
import torch
from torch import nn

from kit import explicit_hessians as hessians, varied_networks as nets
from kit.empty_steps import EMPTY_STEPS
from kit.plain_gradients import plain_gradients
from kit.readings import read_steps
from kit.training_loops import seed_all
from normscope.modules.rng import RngState
from normscope.probes import Descent, Interaction, Recorder

pytestmark = EMPTY_STEPS


@pytest.mark.parametrize("lr", [0.05, 5.0])
def test_descent_is_the_plain_comparison_with_momentum(lr):
    model, batch = hessians.small_mlp(), hessians.small_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=0.01)
    scope = Recorder(model, nets.loss_fn, optimizer, [Descent()], every=1)
    for _ in range(3):
        before = copy.deepcopy(model)
        with scope.step(batch):
            optimizer.zero_grad()
            nets.loss_fn(model, batch).backward()
            optimizer.step()
    records = scope.drain()
    found = {record.name: record.value for record in records}
    loss, g, matrix = hessians.explicit(before, batch)
    walk, theta = hessians.flat_loss(before, batch)
    d = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]) - theta
    after = walk(theta + d).item()
    curvature, linear = (g @ matrix @ g / (g @ g)).item(), -(g @ d).item()
    predicted = linear - (d @ matrix @ d).item() / 2
    expected = {
        "safe_step": 2 / curvature if curvature > 0 else math.inf,
        "step_to_safe": lr * curvature / 2,
        "loss": loss,
        "loss_after": after,
        "actual_decrease": loss - after,
        "raised": float(after > loss),
        "linear_decrease": linear,
        "predicted_decrease": predicted,
        "decrease_ratio": (loss - after) / predicted,
        "linear_decrease_ratio": (loss - after) / linear,
    }
    assert found == pytest.approx(expected, rel=1e-8)
    assert any(record.value for record in records if record.name == "raised") is (lr > 1)


def test_dropout_repeats_its_masks_before_and_after():
    model, (batch,) = nets.make("dropout", dtype=torch.float64), nets.batches("dropout", 1, dtype=torch.float64)
    seed_all()
    streams = RngState()
    found = read_steps(model, batch, Descent(), lr=1e-9)
    expected, _ = plain_gradients(nets.make("dropout", dtype=torch.float64), batch, streams)
    assert found["", "loss"] == pytest.approx(expected, rel=1e-12)
    assert found["", "decrease_ratio"] == pytest.approx(1, rel=1e-3)
    assert found["", "raised"] == 0


class Bowl(nn.Module):
    """L = sum(a x^2) / 2."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))

    def forward(self, a):
        return (a * self.x.square()).sum() / 2


@pytest.mark.parametrize(("share", "raised"), [(0.5, 0), (0.99, 0), (1.01, 1)])
def test_on_a_quadratic_the_safe_step_is_the_edge(share, raised):
    a = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    g = a * torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    safe = (2 * (g * g).sum() / (g * a * g).sum()).item()
    found = read_steps(Bowl(), a, Descent(), lr=share * safe, loss_fn=lambda m, b: m(b))
    assert found["", "safe_step"] == pytest.approx(safe, rel=1e-12)
    assert found["", "step_to_safe"] == pytest.approx(share, rel=1e-12)
    assert found["", "raised"] == raised
    assert found["", "decrease_ratio"] == pytest.approx(1, rel=1e-9)
    dome = read_steps(Bowl(), -a, Descent(), lr=0.1, loss_fn=lambda m, b: m(b))
    assert dome["", "safe_step"] == math.inf
    assert dome["", "step_to_safe"] < 0


def test_without_an_update_nothing_falls_and_nothing_rises():
    found = read_steps(hessians.small_mlp(), hessians.small_batch(), Descent(), lr=0.1, update=False)
    assert found["", "actual_decrease"] == found["", "raised"] == found["", "predicted_decrease"] == 0
    assert math.isnan(found["", "decrease_ratio"])
    assert math.isnan(read_steps(hessians.small_mlp(), hessians.small_batch(), Descent())["", "step_to_safe"])


@pytest.mark.parametrize("probe", [Descent, Interaction])
def test_what_is_not_finite_is_recorded_so(probe):
    model, batch = hessians.small_mlp(), hessians.small_batch()
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")
    found = read_steps(model, batch, probe(), lr=0.1)
    assert all(math.isnan(value) for value in found.values()), found


def test_a_loss_that_explodes_has_risen():
    model = nn.Linear(1, 1, bias=False)
    x = torch.ones(2, 1)
    found = read_steps(model, x, Descent(), lr=1e30, loss_fn=lambda m, b: m(b).square().sum())
    assert found["", "raised"] == 1
