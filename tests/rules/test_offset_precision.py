"""Data far from zero: distance by hand, error against float64, and norms that do not have it."""

import pytest
import torch
from torch import nn
from torch.nn.functional import batch_norm

from kit.findings import finding_of, is_quiet
from normscope import layers
from normscope.evidence import examples


def far(mean, deviation=1.0, *, channels=5, size=64, norm=nn.BatchNorm1d, dtype=torch.float32):
    stream = torch.Generator().manual_seed(0)
    x = (torch.randn(size, channels, generator=stream, dtype=torch.float64) * deviation + mean).to(dtype)
    return examples.alone(norm(channels), [x] * 4)


@pytest.mark.parametrize(("mean", "deviation", "channels"), [(3e4, 1.0, 5), (-7e5, 3.0, 12), (2e5, 0.5, 3)])
def test_distance_and_error_are_those_of_float64(mean, deviation, channels):
    case = far(mean, deviation, channels=channels)
    x = case.loader[0]
    exact = batch_norm(x.double(), None, None, training=True)
    error = float((batch_norm(x, None, None, training=True).double() - exact).abs().max())
    distance = float((x.double().mean(0).abs() / x.double().std(0, correction=0)).max())
    finding = finding_of(case, "NS124")
    assert finding.measured == pytest.approx(error, rel=1e-6)
    assert finding.details["mean_over_deviation"] == pytest.approx(distance, rel=1e-2)
    assert f"means of up to {finding.details['mean_over_deviation']:.2g} standard deviations" in finding.message
    assert f"off by up to {error:.2g}" in finding.message
    ours = layers.BatchNorm1d(channels, affine=False)(x)
    assert float((ours.double() - exact).abs().max()) < 0.1 * error


def test_this_librarys_norms_and_norms_in_eval_mode_are_left_in_peace():
    assert is_quiet(far(1e6, norm=layers.BatchNorm1d), "NS124")
    case = far(1e6)
    case.model.eval()
    assert is_quiet(case, "NS124")


def test_a_constant_channel_is_no_distance():
    case = far(1.0)
    case.loader[:] = [torch.where(torch.arange(5) == 2, 1e6 + x.round() * 0, x) for x in case.loader]
    assert is_quiet(case, "NS124")


def test_maps_are_far_from_a_thousand_deviations_on_unless_their_channels_are_last():
    """In float16 the output's own rounding is an error, whatever the order of a sum: distance alone decides."""
    norm = nn.BatchNorm2d(4, eps=200 * 2e-4)
    x = examples.two_values(1050.0, 10.0, 256, 4).view(16, 4, 4, 4).permute(0, 3, 1, 2).contiguous().half()
    assert is_quiet(examples.alone(norm, [x] * 4), "NS124")
    packed = x.contiguous(memory_format=torch.channels_last)
    finding = finding_of(examples.alone(norm, [packed] * 4), "NS124")
    assert finding.details["mean_over_deviation"] == pytest.approx(105.0)
