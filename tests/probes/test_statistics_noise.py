"""Noise of batch statistics against NumPy and the laws of independent values."""

import math

import pytest
import torch
from scipy.stats import kurtosis
from torch import nn

from kit.readings import read
from normscope._errors import UsageError
from normscope.probes import StatisticsNoise

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
