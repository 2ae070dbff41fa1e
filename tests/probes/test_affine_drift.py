"""Gain and shift of norms: where they are the identity, and how far they have drifted."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from kit import varied_networks as nets
from kit.readings import read
from normscope import layers
from normscope.probes import AffineDrift, Recorder


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, layers.BatchNorm1d])
@pytest.mark.parametrize("training", [True, False])
def test_the_identity_is_where_the_layer_gives_back_its_input(kind, training):
    x = (3 + 2 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0))).double()
    norm = kind(6, momentum=None).double()
    norm(x)
    norm.train(training)
    away = read(copy.deepcopy(norm), lambda m, b: m(b).sum(), x, AffineDrift())
    mean = x.mean(0) if training else norm.running_mean
    sigma = ((x.var(0, correction=0) if training else norm.running_var) + norm.eps).sqrt()
    assert away["", "weight_identity_gap"] == pytest.approx(float(((1 - sigma).abs() / sigma).quantile(0.5)), rel=1e-9)
    assert away["", "bias_identity_gap"] == pytest.approx(float((mean.abs() / sigma).quantile(0.5)), rel=1e-9)
    with torch.no_grad():
        norm.weight.copy_(sigma)
        norm.bias.copy_(mean)
    y = norm(x)
    assert float((y - x).detach().abs().max()) < 1e-9
    found = read(norm, lambda m, b: m(b).sum(), x, AffineDrift())
    assert found["", "weight_identity_gap"] < 1e-12
    assert found["", "bias_identity_gap"] < 1e-12


def test_drift_is_from_the_first_step_seen_and_of_other_norms_too():
    model = nn.Sequential(
        nn.Linear(12, 8), nn.LayerNorm(8), nn.ReLU(), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 4)
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    scope = Recorder(model, nets.loss_fn, optimizer, [AffineDrift()], every=1)
    values = []
    for batch in nets.batches("mlp", 3):
        values.append((model[1].weight.detach().numpy().copy(), model[1].bias.detach().numpy().copy()))
        with scope.step(batch):
            optimizer.zero_grad()
            nets.loss_fn(model, batch).backward()
            optimizer.step()
    found = {(r.step, r.site, r.name): r.value for r in scope.drain()}
    assert {site for _, site, _ in found} == {"1"}
    for step, (weight, bias) in enumerate(values):
        for name, value, start in (("weight", weight, values[0][0]), ("bias", bias, values[0][1])):
            assert found[step, "1", f"{name}_mean"] == pytest.approx(value.mean(), abs=1e-6)
            drift = np.sqrt(np.mean((value - start) ** 2))
            assert found[step, "1", f"{name}_drift"] == pytest.approx(drift, rel=1e-4, abs=1e-9)
    assert found[0, "1", "weight_drift"] == 0 < found[2, "1", "weight_drift"]
