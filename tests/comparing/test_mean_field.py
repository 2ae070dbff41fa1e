"""Squared gradients through wide random layers, position by position, against torch and against written-out numbers."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from normscope.comparing.mean_field import Grid, Taps, inverse_variances, resized, through
from normscope.studies.lab.chain import theory

MAP = np.arange(1.0, 21.0).reshape(4, 5)


@pytest.mark.parametrize(
    "taps", [Taps(), Taps((3, 3)), Taps((1, 5)), Taps((3, 1), (2, 1)), Taps((3, 3), (2, 2)), Taps((5, 3), (1, 2))]
)
def test_squares_go_back_through_a_convolution_as_gradients_go_through_one_whose_weights_are_one(taps):
    inputs = torch.zeros(1, 1, *MAP.shape, dtype=torch.float64, requires_grad=True)
    outputs = F.conv2d(
        inputs, torch.ones(1, 1, *taps.kernel, dtype=torch.float64), padding="same", dilation=taps.dilation
    )
    outputs.backward(torch.tensor(MAP)[None, None])
    assert through(MAP, taps) * math.prod(taps.kernel) == pytest.approx(inputs.grad[0, 0].numpy())


def test_pooling_hands_a_position_to_all_of_its_window():
    assert resized(MAP, Grid(8, 10)) == pytest.approx(np.kron(MAP, np.ones((2, 2))))
    assert resized(np.ones((1, 1)), Grid(2, 3)) == pytest.approx(np.ones((2, 3)))


def test_without_padding_the_variance_is_that_of_a_rectified_normal_value():
    expected = 2 * math.pi / (math.pi - 1)  # one over 1/2 - 1/(2 pi)
    assert inverse_variances((Taps(),) * 3, Grid(1, 1)) == pytest.approx([expected] * 3)
    assert inverse_variances((Taps(),) * 2, Grid(3, 4)) == pytest.approx([expected] * 2)
    assert 0.5 * expected == pytest.approx(theory("relu"), rel=1e-4)


def test_padding_matters_the_less_the_more_positions_there_are():
    far = 2 * math.pi / (math.pi - 1)
    away = [abs(inverse_variances((Taps((3, 3)),) * 3, Grid(n, n))[-1] / far - 1) for n in (2, 4, 8)]
    assert away[0] > 1.5 * away[1] > 2 * away[2] > 0
    assert Grid(24, 24).computed() == (12, 12)
    assert Grid(24, 24).share() == pytest.approx(0.5)
    assert Grid(2, 40).share() < 1


def test_the_variance_behind_a_convolution_is_that_of_random_weights():
    """Inputs of a known mean and spread in every channel, through many random filters, without the norm's help."""
    generator = torch.Generator().manual_seed(0)
    channels, share = 64, 0.6
    offsets = torch.randn(channels, 1, 1, generator=generator)
    means = (share / 2) ** 0.5 * offsets / offsets.square().mean().sqrt()
    inputs = means + ((1 - share) / 2) ** 0.5 * torch.randn(200, channels, 4, 4, generator=generator)
    weights = torch.randn(2000, channels, 3, 3, generator=generator) / (9 * channels) ** 0.5
    outputs = F.conv2d(inputs, weights, padding=1)
    measured = float((1 / outputs.var((0, 2, 3))).mean())
    assert inverse_variances((Taps((3, 3)),), Grid(4, 4), share)[0] == pytest.approx(measured, rel=0.05)
