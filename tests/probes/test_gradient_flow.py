"""Gradient flow against plain autograd and the theory of initialization."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from kit import varied_networks as nets
from kit.empty_steps import EMPTY_STEPS
from kit.readings import read
from normscope._errors import UsageError
from normscope.probes import ActivationDistribution, GradientFlow

pytestmark = EMPTY_STEPS


def kernel(c):
    return (math.sqrt(1 - c * c) + (math.pi - math.acos(c)) * c) / math.pi


def theory(arm, batch):
    """Growth of the squared gradient per layer: Yang et al. 2019, theorem 8 at this batch size."""
    if arm == "linear":
        return (batch - 2) / (batch - 3)
    if arm == "no norm":
        return 1.0
    c = -1 / (batch - 1)
    slope = (math.pi - math.acos(c)) / math.pi
    return (slope + batch - 1) / ((batch - 3) * (1 - kernel(c))) - 1 / (batch - 3)


def deep(width, depth, arm):
    layers = []
    for _ in range(depth):
        layers.append(nn.Linear(width, width, bias=False))
        nn.init.normal_(layers[-1].weight, 0, math.sqrt(2 / width))
        layers += [] if arm == "no norm" else [nn.BatchNorm1d(width, eps=1e-12)]
        layers += [] if arm == "linear" else [nn.ReLU()]
    return nn.Sequential(*layers).requires_grad_(False)


def growth(arm, seed, *, width=1000, batch=64, depth=24):
    torch.manual_seed(seed)
    model = deep(width, depth, arm)
    x, cotangent = torch.randn(batch, width, requires_grad=True), torch.randn(batch, width)
    return read(model, lambda m, b: (m(b) * cotangent).sum(), x, GradientFlow(trim=3))["", "growth"]


@pytest.mark.slow
@pytest.mark.parametrize(("arm", "within"), [("relu", 0.01), ("linear", 0.01), ("no norm", 0.02)])
def test_growth_at_initialization_is_the_theorem(arm, within):
    assert theory("relu", 64) == pytest.approx(1.493, abs=5e-4)
    measured = np.mean([growth(arm, seed) for seed in range(4)])
    assert measured == pytest.approx(theory(arm, 64), rel=within)


def test_growth_needs_two_layers_and_a_gradient():
    (batch,) = nets.batches("mlp", 1)
    one = read(nn.Sequential(nn.Linear(12, 4)), nets.loss_fn, batch, GradientFlow())
    none = read(nets.make("mlp"), nets.loss_fn, batch, GradientFlow(), block=lambda: None)
    assert math.isnan(one["", "growth"])
    assert list(none) == [("", "growth")]


@pytest.mark.parametrize("net", ["mlp", "cnn", "dropout", "residual"])
def test_gradient_flow_is_what_autograd_says(net):
    model, (batch,) = nets.make(net, dtype=torch.float64), nets.batches(net, 1, dtype=torch.float64)
    outputs = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, y, name=name: outputs.setdefault(name, y))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    ]
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    torch.manual_seed(3)
    loss = nets.loss_fn(model, batch)
    # In the residual net an output is overwritten in place later: differentiate by the output as it was.
    expected = dict(zip(outputs, torch.autograd.grad(loss, list(outputs.values())), strict=True))
    for handle in handles:
        handle.remove()
    torch.manual_seed(3)
    found = read(model, nets.loss_fn, batch, GradientFlow())
    assert [site for site, name in found if name == "output_norm"] == list(expected)
    means = []
    for site, gradient in expected.items():
        module = model.get_submodule(site)
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in module.parameters()))
        means.append(float((gradient**2).mean()))
        assert found[site, "norm"] == pytest.approx(norm, rel=1e-12)
        assert found[site, "output_norm"] == pytest.approx(math.sqrt(means[-1]), rel=1e-12)
    slope = np.polyfit(range(len(means)), np.log(means), 1)[0]
    assert found["", "growth"] == pytest.approx(math.exp(-slope), rel=1e-9)


def test_a_layer_called_twice_is_pooled_over_its_calls():
    layer = nn.Linear(3, 3, dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64)
    first = layer(x)
    second = layer(first)
    gradients = torch.autograd.grad((second**2).sum(), (first, second))
    found = read(nn.Sequential(layer, layer), lambda m, b: (m(b) ** 2).sum(), x, GradientFlow())
    expected = math.sqrt(float(sum((g**2).sum() for g in gradients)) / 30)
    assert found["0", "output_norm"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("order", ["zero first", "zero last"])
def test_gradients_are_read_right_before_the_update(order):
    model, (batch,) = nets.make("mlp"), nets.batches("mlp", 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    seen = []

    def block():
        nets.loss_fn(model, batch).backward()
        seen.append(model[0].weight.grad.norm().item() ** 2 + model[0].bias.grad.norm().item() ** 2)
        optimizer.step()
        optimizer.zero_grad()

    found = read(model, nets.loss_fn, batch, GradientFlow(), optimizer, block)
    assert found["0", "norm"] == pytest.approx(math.sqrt(seen[0]), rel=1e-6)


def test_two_optimizers_are_each_read_before_their_own_update():
    model, (batch,) = nets.make("mlp"), nets.batches("mlp", 1)
    halves = [list(model[0].parameters()), list(model[9].parameters())]
    optimizers = [torch.optim.SGD(half, 0.1) for half in halves]
    seen = []

    def block():
        for half, optimizer in zip(halves, optimizers, strict=True):
            model.zero_grad()
            nets.loss_fn(model, batch).backward()
            seen.append(math.sqrt(sum(p.grad.norm().item() ** 2 for p in half)))
            optimizer.step()

    found = read(model, nets.loss_fn, batch, GradientFlow(), optimizers, block)
    assert [found["0", "norm"], found["9", "norm"]] == pytest.approx(seen, rel=1e-6)


@pytest.mark.parametrize("probe", [GradientFlow, ActivationDistribution])
def test_a_site_that_is_not_there_is_named(probe):
    model, (batch,) = nets.make("mlp"), nets.batches("mlp", 1)
    with pytest.warns(UserWarning, match="no module 'nine'; it has 0, 1"):
        assert read(model, nets.loss_fn, batch, probe(sites=["nine"])) == {}


def test_options_out_of_range_are_refused():
    with pytest.raises(UsageError, match="sample=1"):
        ActivationDistribution(sample=1)
    with pytest.raises(UsageError, match="trim=-1"):
        GradientFlow(trim=-1)
    with pytest.raises(UsageError, match="every=0"):
        GradientFlow(every=0)
