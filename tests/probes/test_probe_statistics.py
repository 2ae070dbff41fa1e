"""Statistics of norms: their noise, the gap of the running ones, and the drift of gain and shift."""

import copy
import math

import numpy as np
import probe_nets as nets
import pytest
import torch
from reading import by_name, read
from scipy.stats import kurtosis
from torch import nn

from normscope import layers
from normscope._errors import UsageError
from normscope.probes import AffineDrift, Scope, StatisticsGap, StatisticsNoise

DRAWS = {
    "normal": lambda g, *shape: torch.randn(*shape, generator=g),
    "uniform": lambda g, *shape: torch.rand(*shape, generator=g),
    "laplace": lambda g, *shape: torch.rand(*shape, generator=g).log() - torch.rand(*shape, generator=g).log(),
}
EXCESS = {"normal": 0.0, "uniform": -1.2, "laplace": 3.0}


def noise_of(x, module=None, **options):
    module = module or (nn.BatchNorm2d if x.ndim == 4 else nn.BatchNorm1d)(x.shape[1])
    found = read(module, lambda m, b: m(b).sum(), x, StatisticsNoise(**options))
    return {name: value for (_, name), value in found.items()}


@pytest.mark.parametrize("law", DRAWS)
@pytest.mark.parametrize("rest", [(), (4, 4)])
def test_noise_of_independent_values_is_the_law(law, rest):
    """Variance of the mean 1/m, of the standard deviation (rho + 2)/(4 m), in units of the variance."""
    generator = torch.Generator().manual_seed(1)
    size = 512 if not rest else 64
    x = 5 + 3 * DRAWS[law](generator, size, 600, *rest)
    found = noise_of(x)
    m = size * math.prod(rest)
    assert found["mean_noise"] == pytest.approx(1 / m, rel=0.07)
    assert found["mean_noise_ratio"] == pytest.approx(1, rel=0.07)
    # Of first order in 1/m: with heavy tails 64 values a part leave some percent.
    assert found["scale_noise"] == pytest.approx((EXCESS[law] + 2) / (4 * m), rel=0.12 if law == "laplace" else 0.07)
    assert found["scale_noise_ratio"] == pytest.approx(1, rel=0.12 if law == "laplace" else 0.07)


def test_dependence_raises_the_ratio_and_order_shows():
    generator = torch.Generator().manual_seed(2)
    constant = torch.randn(64, 100, 1, 1, generator=generator).expand(64, 100, 4, 4)
    assert noise_of(constant)["mean_noise_ratio"] == pytest.approx(16, rel=0.15)
    shuffled = torch.randn(64, 100, generator=generator)
    ordered = shuffled.sort(0).values
    assert noise_of(shuffled)["mean_noise_ratio"] == pytest.approx(1, abs=0.15)
    assert noise_of(ordered)["mean_noise_ratio"] > 5
    assert noise_of(1e4 + shuffled)["mean_noise_ratio"] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("rest", [(), (3, 5)])
def test_noise_is_numpys(rest):
    x = torch.randn(22, 6, *rest, generator=torch.Generator().manual_seed(3), dtype=torch.float64) ** 3
    found = noise_of(x, nn.BatchNorm2d(6).double() if rest else nn.BatchNorm1d(6).double(), groups=4)
    values = x.numpy().reshape(22, 6, -1)
    each = 5 * values.shape[2]
    parts = values[:20].reshape(4, 5, 6, -1)
    m = 22 * values.shape[2]
    flat = values.transpose(1, 0, 2).reshape(6, -1)
    share = each / m / flat.var(axis=1, ddof=1)
    mean = (parts.mean((1, 3)).var(axis=0, ddof=1) * share).mean()
    scale = (parts.std((1, 3)).var(axis=0, ddof=1) * share).mean()
    assert found["mean_noise"] == pytest.approx(mean, rel=1e-10)
    assert found["scale_noise"] == pytest.approx(scale, rel=1e-10)
    excess = kurtosis(flat, axis=1, bias=False).mean()
    assert found["scale_noise_ratio"] == pytest.approx(scale * 4 * m / (excess + 2), rel=1e-9)


def test_channels_without_variance_are_left_out_and_small_batches_passed_over():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    y = torch.cat([x, torch.ones(64, 2)], 1)
    assert noise_of(y) == pytest.approx(noise_of(x))
    assert all(map(math.isnan, noise_of(torch.ones(64, 2)).values()))
    assert noise_of(x[:5]) == {}
    with pytest.raises(UsageError, match="groups=1"):
        StatisticsNoise(groups=1)


@pytest.mark.parametrize("net", ["mlp", "cnn", "dropout", "residual"])
def test_gaps_are_those_of_plain_copies(net):
    model = nets.make(net, dtype=torch.float64)
    first, batch = nets.batches(net, 2, dtype=torch.float64)
    nets.loss_fn(model, first)  # moves the running statistics
    twin, seen = copy.deepcopy(model), {}
    for name, module in twin.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(lambda _m, i, name=name: seen.update({name: i[0].detach().clone()}))
    torch.manual_seed(9)
    train = nets.loss_fn(copy.deepcopy(twin), batch).item()
    held = nets.loss_fn(copy.deepcopy(twin).eval(), batch).item()
    partly = copy.deepcopy(twin)
    for module in partly.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    torch.manual_seed(9)
    only = nets.loss_fn(partly, batch).item()
    seen.clear()
    torch.manual_seed(9)
    nets.loss_fn(copy.deepcopy(twin), batch)
    torch.manual_seed(9)
    found = read(model, nets.loss_fn, batch, StatisticsGap())
    assert found["", "train_loss"] == pytest.approx(train, rel=1e-12)
    assert found["", "eval_loss"] == pytest.approx(held, rel=1e-12)
    assert found["", "eval_gap"] == pytest.approx(held - train, rel=1e-9)
    assert found["", "statistics_share"] == pytest.approx((only - train) / (held - train), rel=1e-9)
    if net in ("mlp", "cnn"):  # nothing else depends on the mode
        assert found["", "statistics_share"] == pytest.approx(1, rel=1e-12)
    assert set(by_name(found, "mean_gap")) == set(seen)
    for name, x in seen.items():
        module = twin.get_submodule(name)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        unit = (module.running_var + module.eps).sqrt()
        gap = ((x.mean(axes) - module.running_mean) / unit).square().mean().sqrt()
        scale = ((x.var(axes) + module.eps) / (module.running_var + module.eps)).log().square().mean().sqrt()
        assert found[name, "mean_gap"] == pytest.approx(float(gap), rel=1e-9)
        assert found[name, "variance_gap"] == pytest.approx(float(scale), rel=1e-9)


def test_calls_are_pooled_by_the_law_of_total_variance_and_true_statistics_have_only_noise():
    norm = nn.BatchNorm1d(2000)
    x = torch.randn(100, 2000, generator=torch.Generator().manual_seed(0))
    probe = StatisticsGap(loss=False)
    noise = {name: value for (_, name), value in read(norm, lambda m, b: m(b).sum(), x, probe).items()}
    assert noise["mean_gap"] == pytest.approx(math.sqrt(1 / 100), rel=0.05)
    assert noise["variance_gap"] == pytest.approx(math.sqrt(2 / 100), rel=0.05)
    whole, parts = (
        read(nn.BatchNorm1d(2000), lambda m, b, n=n: sum(m(part).sum() for part in b.chunk(n)), 3 + 2 * x, probe)
        for n in (1, 4)
    )
    assert parts == pytest.approx(whole, rel=1e-5)


def test_modes_are_the_users_again_for_the_probes_that_follow():
    model, (batch,) = nets.make("dropout"), nets.batches("dropout", 1)
    alone = Scope(model, nets.loss_fn, None, ["landscape"], every=1)
    after = Scope(model, nets.loss_fn, None, ["statistics_gap", "landscape"], every=1)
    for scope in (alone, after):
        scope.probes[-1].lr = 0.1
        torch.manual_seed(3)
        with scope.step(batch):
            pass
    assert alone.drain() == [record for record in after.drain() if record.probe == "landscape"]


def test_without_a_gap_there_is_no_share():
    model, (batch,) = nets.make("eval"), nets.batches("eval", 1)
    found = read(model, nets.loss_fn, batch, StatisticsGap())
    assert found["", "eval_gap"] == 0
    assert math.isnan(found["", "statistics_share"])


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
    scope = Scope(model, nets.loss_fn, optimizer, [AffineDrift()], every=1)
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
