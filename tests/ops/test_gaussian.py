"""Gaussian moments of activations: against what can be integrated by hand."""

import math

import pytest
import torch

from normscope.ops import gaussian_moments

PI = math.pi


@pytest.mark.parametrize(
    ("activation", "mean", "second"),
    [
        (torch.relu, 1 / math.sqrt(2 * PI), 0.5),
        (torch.abs, math.sqrt(2 / PI), 1.0),
        (lambda z: z, 0.0, 1.0),
        (lambda z: z**2, 1.0, 3.0),
        (torch.exp, math.exp(0.5), math.exp(2.0)),
        (torch.sin, 0.0, (1 - math.exp(-2)) / 2),
        (torch.nn.LeakyReLU(0.1), 0.9 / math.sqrt(2 * PI), 1.01 / 2),
        (lambda z: torch.special.ndtr(z), 0.5, 1 / 3),  # of a Gaussian, uniform
    ],
)
def test_closed_forms(activation, mean, second):
    found = gaussian_moments(activation)
    assert found.mean == pytest.approx(mean, abs=1e-10)
    assert found.second == pytest.approx(second, rel=1e-10)
    assert found.gain == pytest.approx((second - mean**2) ** -0.5, rel=1e-9)


def test_gain_of_relu_as_published():
    gain = gaussian_moments(torch.relu).gain
    assert gain == pytest.approx(math.sqrt(2 / (1 - 1 / PI)), rel=1e-11)
    # and the gradient's growth a layer, E[phi'^2] gain^2, is that of a deep batch norm network
    assert gain**2 / 2 == pytest.approx(PI / (PI - 1), rel=1e-11)
