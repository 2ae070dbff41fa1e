"""Noise of gradients against plain gradients and the law of two batch sizes."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from kit import varied_networks as nets
from kit.empty_steps import EMPTY_STEPS
from kit.plain_gradients import plain_gradients
from kit.readings import read
from normscope._errors import UsageError
from normscope.modules.rng import RngState
from normscope.probes import Conditioning, DistributionShift, GradientNoise, Recorder

pytestmark = EMPTY_STEPS


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
    scope = Recorder(model, lambda m, b: m(b), None, [GradientNoise(parts=parts)], every=1)
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
    streams = RngState()
    squares = {}
    for count in (1, 2):
        _, gradients = zip(
            *(
                plain_gradients(model, (batch[0][at : at + 16 // count], batch[1][at : at + 16 // count]), streams)
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
    assert read(model, nets.loss_fn, batch, GradientNoise(parts=17)) == {}  # 16 samples
    with pytest.warns(UserWarning, match="no tensor with an axis of samples"):
        read(model, lambda m, b: m[0].weight.sum(), None, GradientNoise())
    with pytest.raises(UsageError, match="parts=1"):
        GradientNoise(parts=1)
    for probe in (Conditioning, DistributionShift):
        with pytest.raises(UsageError, match="sample=1"):
            probe(sample=1)
