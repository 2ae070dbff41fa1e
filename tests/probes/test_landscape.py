"""The landscape along the gradient against plain walks and closed forms; in float64."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from kit import varied_networks as nets
from kit.empty_steps import EMPTY_STEPS
from kit.plain_gradients import plain_gradients
from kit.readings import read_beside_copy
from normscope import probes
from normscope.modules.rng import RngState
from normscope.probes import Recorder

pytestmark = EMPTY_STEPS

NETS = [name for name in nets.NETS if name not in ("numpy", "transformer")]
TOLERANCE = 1e-10


def plain_landscape(before, batch, streams, lr, options):
    """The line in the plain way; curvature from the explicit product by double backward on a copy."""
    theta = {n: p.detach() for n, p in before.named_parameters() if p.requires_grad}
    loss, gradient = plain_gradients(before, batch, streams)
    gradient = {n: gradient[n] for n in theta}

    def flat(parts):
        return torch.cat([parts[n].flatten() for n in theta])

    g, size = flat(gradient), flat(theta).norm().item()
    length = g.norm().item()
    units = {"same-step": lr, "relative-step": size / length, "predicted-decrease": loss / length**2}
    ranges = {"same-step": (0.5, 4.0), "relative-step": (1e-3, 3e-2), "predicted-decrease": (0.02, 0.5)}
    found = {"loss": loss, "gradient_norm": length}

    def look(s):
        there, after = plain_gradients(before, batch, streams, {n: theta[n] - s * gradient[n] for n in theta})
        return there, (flat(after) - g).norm().item()

    for matching, (low, high) in ranges.items():
        grid = np.geomspace(low, high, 4) * units[matching]
        seen = [look(s) for s in grid]
        losses, changes = np.array([there for there, _ in seen]), np.array([change for _, change in seen])
        dense = np.array([1e-2]) / 0.5 * grid[0]
        betas = [*(changes / (grid * length)), *(look(s)[1] / (s * length) for s in dense)]
        found |= {
            f"loss_min@{matching}": losses.min(),
            f"loss_max@{matching}": losses.max(),
            f"loss_range@{matching}": losses.max() - losses.min(),
            f"loss_log_range@{matching}": np.log(losses.max() / losses.min()),
            f"gradient_difference@{matching}": changes.max(),
            f"gradient_difference_relative@{matching}": changes.max() / length,
            f"effective_beta@{matching}": max(betas),
        }
        if matching == "same-step":
            found |= {f"s@s={k}": s for k, s in enumerate(grid)}
            found |= {f"loss@s={k}": value for k, value in enumerate(losses)}
    return found


@pytest.mark.parametrize("net", NETS)
def test_landscape_is_the_plain_walk(net):
    probe = probes.LandscapeAlongGradient(points=4, dense=(1e-2,), curvature=False)
    found, before, _, batch, streams = read_beside_copy(net, probe)
    expected = plain_landscape(before, batch, streams, 0.3, probe)
    assert {name for _, name in found} == set(expected)
    for name, value in expected.items():
        # effective beta divides a difference by a small s: rounding of 1e-16 becomes 1e-13 / s
        assert found["", name] == pytest.approx(value, rel=TOLERANCE), name


class Quadratic(nn.Module):
    """L = x^T A x / 2 with a known Hessian; one weight of two axes."""

    def __init__(self, matrix):
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.x = nn.Parameter(torch.arange(1.0, matrix.shape[0] + 1, dtype=matrix.dtype).unsqueeze(1))

    def forward(self, _batch):
        return (self.x.T @ self.matrix @ self.x).squeeze() / 2


def test_curvature_and_beta_of_a_quadratic_are_known():
    root = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = root @ root.T
    model = Quadratic(matrix)
    g = matrix @ model.x.detach()
    scope = Recorder(model, lambda m, b: m(b), None, [probes.LandscapeAlongGradient(lr=0.01)], every=1)
    with scope.step(None):
        pass
    found = {record.name: record.value for record in scope.drain()}
    assert found["curvature"] == pytest.approx((g.T @ matrix @ g / (g.T @ g)).item(), rel=1e-12)
    for matching in probes.LandscapeAlongGradient().matchings:
        assert found[f"effective_beta@{matching}"] == pytest.approx(((matrix @ g).norm() / g.norm()).item(), rel=1e-9)
        assert found[f"curvature@{matching}"] == found["curvature"]


def test_curvature_in_train_mode_is_the_limit_of_gradient_differences():
    smooth = nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 4)).double()
    (batch,) = nets.batches("mlp", 1, dtype=torch.float64)
    scope = Recorder(smooth, nets.loss_fn, None, [probes.LandscapeAlongGradient(lr=0.1)], every=1)
    streams = RngState()
    before = copy.deepcopy(smooth)
    with scope.step(batch):
        pass
    found = {record.name: record.value for record in scope.drain()}
    _, g = plain_gradients(before, batch, streams)
    moved = []
    for s in (1e-5, -1e-5):
        values = {name: parameter - s * g[name] for name, parameter in before.named_parameters()}
        _, there = plain_gradients(before, batch, streams, values)
        moved.append(sum((there[name] * g[name]).sum() for name in g))
    expected = ((moved[1] - moved[0]) / 2e-5 / sum((part**2).sum() for part in g.values())).item()
    assert found["curvature"] == pytest.approx(expected, rel=1e-6)


class OnlyOnce(torch.autograd.Function):
    """A square without a second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return 2 * ctx.saved_tensors[0] * g


def test_without_a_second_derivative_the_central_difference_is_taken():
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def square(function):
        scope = Recorder(
            model, lambda m, b: function(m(b)).square().mean(), None, [probes.LandscapeAlongGradient(lr=0.1)], every=1
        )
        with scope.step(x):
            pass
        return {record.name: record.value for record in scope.drain()}["curvature"]

    assert square(OnlyOnce.apply) == pytest.approx(square(lambda y: y**2), rel=1e-8)


def test_what_is_not_finite_is_recorded_so():
    model = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 4)).double()
    (batch,) = nets.batches("mlp", 1, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scope = Recorder(model, nets.loss_fn, optimizer, ["landscape", "covariate_shift", "gradient_flow"], every=1)
    with torch.no_grad():
        model[0].weight[0, 0] = float("inf")
    with scope.step(batch):
        nets.loss_fn(model, batch).backward()
        optimizer.step()
    found = {(record.probe, record.name): record.value for record in scope.drain()}
    assert np.isnan(found["landscape", "loss"])
    assert np.isnan(found["landscape", "loss_range@same-step"])
    assert np.isnan(found["covariate_shift", "l2"])
    assert np.isnan(found["gradient_flow", "growth"])
