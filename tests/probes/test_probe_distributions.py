"""Distances of distributions, spectra of inputs, and noise of gradients, against SciPy, plain loops and laws."""

import copy
import math
from itertools import pairwise

import numpy as np
import probe_nets as nets
import pytest
import torch
import torch.nn.functional as F
from reading import by_name, read
from scipy.stats import iqr, wasserstein_distance
from torch import nn

from normscope import probes
from normscope._errors import UsageError
from normscope.probes import Conditioning, DistributionShift, GradientNoise, Scope


@pytest.mark.parametrize("net", ["mlp", "dropout", "cnn", "residual"])
def test_the_way_of_each_unit_is_scipys(net):
    model = nets.make(net, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    fixed = next(nets.batches(net, 1, size=40, seed=7, dtype=torch.float64))
    scope = Scope(model, nets.loss_fn, optimizer, [DistributionShift(fixed, sample=10**6)], every=1)
    outputs, streams = [], None
    for batch in nets.batches(net, 3, dtype=torch.float64):
        twin, seen = copy.deepcopy(model), {}
        for name, module in twin.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.modules.batchnorm._BatchNorm)):
                module.register_forward_hook(lambda _m, _i, y, n=name, s=seen: s.update({n: y.detach().clone()}))
        now, streams = torch.get_rng_state(), torch.get_rng_state() if streams is None else streams
        torch.set_rng_state(streams)  # the masks of the first reading
        twin(fixed[0])
        torch.set_rng_state(now)
        outputs.append({name: y.movedim(1, 0).flatten(1).numpy() for name, y in seen.items()})
        with scope.step(batch):
            optimizer.zero_grad()
            nets.loss_fn(model, batch).backward()
            optimizer.step()
    found = {(r.step, r.site, r.name): r.value for r in scope.drain()}
    assert {site for _, site, _ in found} == set(outputs[0])
    for site in outputs[0]:
        values = [output[site] for output in outputs]
        scale = np.mean([iqr(value, axis=1).mean() for value in values])

        def apart(a, b):
            return np.mean([wasserstein_distance(p, q) for p, q in zip(a, b, strict=True)])

        steps = [apart(a, b) for a, b in pairwise(values)]
        assert found[2, site, "shift"] == pytest.approx(steps[1] / scale, rel=1e-9)
        assert found[2, site, "path_length"] == pytest.approx(sum(steps) / scale, rel=1e-9)
        assert found[2, site, "displacement"] == pytest.approx(apart(values[0], values[2]) / scale, rel=1e-9)
        first, last = ((v - v.mean(1, keepdims=True)) / v.std(1, keepdims=True) for v in (values[0], values[2]))
        assert found[2, site, "shape_displacement"] == pytest.approx(apart(first, last), rel=1e-9)
        drift = np.abs(values[2].mean(1) - values[0].mean(1)).mean() / scale
        assert found[2, site, "mean_drift"] == pytest.approx(drift, rel=1e-9)
        widening = np.abs(values[2].std(1) - values[0].std(1)).mean() / scale
        assert found[2, site, "std_drift"] == pytest.approx(widening, rel=1e-9)
        assert (0, site, "shift") not in found
        assert found[0, site, "path_length"] == 0 == found[0, site, "displacement"]
        assert found[2, site, "displacement"] <= found[2, site, "path_length"] * (1 + 1e-12)


def test_a_moved_and_a_stretched_normal_are_as_far_as_the_law_says():
    """W1 of N(m, 1) and N(0, 1) is m; of N(0, s^2) and N(0, 1) it is (s - 1) sqrt(2/pi)."""
    model = nn.Sequential(nn.BatchNorm1d(50))
    x = torch.randn(2000, 50, generator=torch.Generator().manual_seed(0))
    scope = Scope(model, lambda m, b: m(b).sum(), None, [DistributionShift(sample=5000)], every=1)
    for weight, bias in ((1, 0), (1, 0.7), (3, 0)):
        nn.init.constant_(model[0].weight, weight)
        nn.init.constant_(model[0].bias, bias)
        with scope.step(x):
            model(x)
    found = {(r.step, r.name): r.value for r in scope.drain()}
    quartiles = 2 * 0.6745
    assert found[1, "displacement"] == pytest.approx(0.7 / quartiles, rel=0.03)
    stretched = 2 * math.sqrt(2 / math.pi)
    assert found[2, "displacement"] == pytest.approx(stretched / (quartiles * 5 / 3), rel=0.03)
    assert found[2, "path_length"] > found[2, "displacement"] + 0.1
    assert found[2, "shape_displacement"] < 1e-4  # a norm's gain and shift change no shape
    assert found[1, "mean_drift"] == pytest.approx(0.7 / quartiles, rel=0.03)


def test_the_first_batch_is_kept_as_it_was():
    model, (first, second) = nets.make("mlp"), nets.batches("mlp", 2)
    scope = Scope(model, nets.loss_fn, None, [DistributionShift()], every=1)
    with scope.step(first):
        pass
    first[0].zero_()
    with scope.step(second):
        pass
    assert {record.value for record in scope.drain() if record.name in ("path_length", "shape_displacement")} == {0.0}


def test_a_sample_of_positions_is_bounded_and_near():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1))
    x = torch.randn(32, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    results = []
    for sample in (4096, 10**6):
        torch.manual_seed(0)
        model[0].reset_parameters()
        scope = Scope(model, lambda m, b: m(b).sum(), None, [DistributionShift(sample=sample)], every=1)
        for _ in range(2):
            with scope.step(x):
                pass
            nn.init.ones_(model[0].weight)
        results.append({r.name: r.value for r in scope.drain() if r.step == 1})
    assert results[0] == pytest.approx(results[1], rel=0.15, abs=0.05)


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


class Quadratic(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, x):
        return (self.weight * x).sum(1).mean()


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_the_noise_scale_is_without_bias(parts):
    """Gradients of single samples are N(mean, S): both estimates must hit the truth on average."""
    generator = torch.Generator().manual_seed(parts)
    mean = torch.full((20,), 0.5, dtype=torch.float64)
    spread = torch.linspace(0.5, 2, 20, dtype=torch.float64)
    model = Quadratic(20)
    scope = Scope(model, lambda m, b: m(b), None, [GradientNoise(parts=parts)], every=1)
    for _ in range(600):
        with scope.step(mean + spread * torch.randn(25, 20, generator=generator, dtype=torch.float64)):
            pass
    records = scope.drain()
    truth = {"gradient_square": float(mean.dot(mean)), "gradient_variance": float(spread.dot(spread))}
    for name, value in truth.items():
        values = np.array([record.value for record in records if record.name == name])
        assert abs(values.mean() - value) < 4 * values.std() / math.sqrt(len(values)), name
        assert values.mean() == pytest.approx(value, rel=0.1)


@pytest.mark.parametrize("net", ["mlp", "cnn", "dropout"])
def test_noise_is_that_of_plain_gradients_in_train_mode(net):
    model, (batch,) = nets.make(net, dtype=torch.float64), nets.batches(net, 1, dtype=torch.float64)
    torch.manual_seed(1)
    streams = probes.RngState()
    squares = {}
    for count in (1, 2):
        _, gradients = zip(
            *(
                nets.plain_gradients(model, (batch[0][at : at + 16 // count], batch[1][at : at + 16 // count]), streams)
                for at in range(0, 16, 16 // count)
            ),
            strict=True,
        )
        squares[count] = np.mean([sum(float(g.square().sum()) for g in one.values()) for one in gradients])
    streams.restore()
    found = read(model, nets.loss_fn, batch, GradientNoise(), block=lambda: None)
    assert found["", "gradient_square"] == pytest.approx((16 * squares[1] - 8 * squares[2]) / 8, rel=1e-9)
    assert found["", "gradient_variance"] == pytest.approx((squares[2] - squares[1]) * 16, rel=1e-9)
    ratio = found["", "gradient_variance"] / found["", "gradient_square"]
    assert found["", "noise_scale"] == pytest.approx(ratio)


def test_what_cannot_be_cut_is_named():
    model, (batch,) = nets.make("mlp"), nets.batches("mlp", 1)
    with pytest.warns(UserWarning, match="a batch of 16 cannot be cut into 17 parts"):
        read(model, nets.loss_fn, batch, GradientNoise(parts=17))
    with pytest.warns(UserWarning, match="no tensor with an axis of samples"):
        read(model, lambda m, b: m[0].weight.sum(), None, GradientNoise())
    with pytest.raises(UsageError, match="parts=1"):
        GradientNoise(parts=1)
    for probe in (Conditioning, DistributionShift):
        with pytest.raises(UsageError, match="sample=1"):
            probe(sample=1)
