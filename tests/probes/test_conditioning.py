"""Spectra of inputs against plain eigenvalues, laws and the Fisher matrix written out."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kit import varied_networks as nets
from kit.readings import by_name, read
from normscope.probes import Conditioning


def plain_spectrum(vectors):
    return np.sort(np.linalg.eigvalsh(vectors.T @ vectors / len(vectors)))[::-1]


@pytest.mark.parametrize("net", ["mlp", "cnn", "residual", "shared"])
def test_conditions_are_those_of_plain_eigenvalues(net):
    model, (batch,) = nets.make(net, dtype=torch.float64), nets.batches(net, 1, size=64, dtype=torch.float64)
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.LSTM)):
            module.register_forward_pre_hook(lambda _m, i, n=name: seen.setdefault(n, []).append(i[0].detach().clone()))
    torch.manual_seed(4)
    found = read(model, nets.loss_fn, batch, Conditioning(sample=10**6))
    assert set(by_name(found, "top_over_mean")) == set(seen)
    for site, calls in seen.items():
        x = torch.cat(calls)
        vectors = (x.movedim(1, -1) if x.ndim == 4 else x).reshape(-1, x.shape[1 if x.ndim == 4 else -1]).numpy()
        values = plain_spectrum(vectors)
        assert found[site, "top_over_mean"] == pytest.approx(values[0] / values.mean(), rel=1e-9)
        assert found[site, "outlier"] == pytest.approx(values[0] / values[1:].mean(), rel=1e-9)
        count = 1 + int(np.argmax(np.cumsum(values) >= 0.95 * values.sum()))
        assert found[site, "condition_95"] == pytest.approx(values[0] / values[count - 1], rel=1e-9)
        # A unit that is off on the whole batch leaves a zero.
        whole = values[0] / values[-1] if values[-1] > 1e-13 * values[0] else math.inf
        assert found[site, "condition_100"] == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("size", [64, 256])
def test_the_outlier_of_uncentred_relu_is_the_law_and_batch_norm_after_it_removes_it(size):
    x = torch.randn(6000, size, generator=torch.Generator().manual_seed(size))
    plain = nn.Sequential(nn.BatchNorm1d(size), nn.ReLU(), nn.Linear(size, 3))
    found = read(plain, lambda m, b: m(b).sum(), x, Conditioning(sample=10**6))
    assert found["2", "outlier"] == pytest.approx(1 + size / (math.pi - 1), rel=0.02)
    centred = nn.Sequential(nn.ReLU(), nn.BatchNorm1d(size), nn.Linear(size, 3))
    assert read(centred, lambda m, b: m(b).sum(), x, Conditioning(sample=10**6))["2", "outlier"] < 2


def test_fewer_vectors_than_dimensions_and_no_input_at_all():
    layer = nn.Linear(30, 2)
    x = torch.randn(10, 30, generator=torch.Generator().manual_seed(0))
    found = read(layer, lambda m, b: m(b).sum(), x, Conditioning())
    values = plain_spectrum(x.double().numpy())
    assert found["", "top_over_mean"] == pytest.approx(values[0] / values.mean(), rel=1e-6)
    assert found["", "condition_100"] == math.inf
    for broken in (torch.zeros(10, 30), torch.full((10, 30), math.nan)):
        assert all(map(math.isnan, read(layer, lambda m, b: m(b).sum(), broken, Conditioning()).values()))


LOSSES = {
    "mean": lambda m, b: F.cross_entropy(m(b[0]), b[1]),
    "sum": lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="sum"),
    "nll": lambda m, b: F.nll_loss(F.log_softmax(m(b[0]), 1), b[1]),
}
OTHERS = {
    "smoothed": lambda m, b: F.cross_entropy(m(b[0]), b[1], label_smoothing=0.1),
    "squares": lambda m, b: F.mse_loss(m(b[0]), F.one_hot(b[1], 4).double()),
    "scaled": lambda m, b: 128 * F.cross_entropy(m(b[0]), b[1]),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_fisher_values_are_those_of_the_matrix_and_of_the_hessian(loss):
    model, (batch,) = nets.make("mlp", dtype=torch.float64), nets.batches("mlp", 1, size=20, dtype=torch.float64)
    found = read(copy.deepcopy(model), LOSSES[loss], batch, Conditioning())
    seen = []
    model[9].register_forward_pre_hook(lambda _m, i: seen.append(i[0].detach()))
    p = model(batch[0]).detach().softmax(1).numpy()
    x = seen[0].numpy()
    whole = sum(np.kron(np.diag(q) - np.outer(q, q), np.outer(h, h)) for q, h in zip(p, x, strict=True)) / len(x)
    expected = np.linalg.eigvalsh(whole)[::-1]
    top = [found["9", f"fisher_{index}"] for index in (1, 2, 3)]
    assert top == pytest.approx(expected[:3].tolist(), rel=1e-9)
    # Of a linear layer under softmax it is the Hessian itself.
    hessian = torch.autograd.functional.hessian(
        lambda w: F.cross_entropy(F.linear(seen[0], w, model[9].bias.detach()), batch[1]), model[9].weight.detach()
    ).reshape(40, 40)
    assert top == pytest.approx(torch.linalg.eigvalsh(hessian).flip(0)[:3].tolist(), rel=1e-9)


@pytest.mark.parametrize("loss", OTHERS)
def test_other_losses_have_no_fisher_values(loss):
    model, (batch,) = nets.make("mlp", dtype=torch.float64), nets.batches("mlp", 1, dtype=torch.float64)
    found = read(model, OTHERS[loss], batch, Conditioning())
    assert not any(name.startswith("fisher") for _, name in found)
