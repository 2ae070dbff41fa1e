"""The noise of Santurkar et al. (2018), algorithm 1: its distributions, its stream, its doses."""

import math

import pytest
import torch

from normscope import layers
from normscope._errors import UsageError


def draw(steps=400, shape=(50, 64), **more):
    """Return the factors and summands of many steps, each ``(steps, N, C)``."""
    layer = layers.TimeVaryingNoise(shape[1], **more)
    zero, one = torch.zeros(shape, dtype=torch.float64), torch.ones(shape, dtype=torch.float64)
    m, s = [], []
    for _ in range(steps):
        state = layer.draws.clone()
        m.append(layer(zero))
        layer.draws.copy_(state)
        s.append(layer(one) - m[-1])
    return torch.stack(s), torch.stack(m)


@pytest.fixture(scope="module")
def noise():
    return draw()


def test_the_mean_part(noise):
    """m ~ U(mu - .1, mu + .1) around mu ~ U(-.5, .5): standard deviations .5/sqrt 3 = .289 and .1/sqrt 3."""
    _, m = noise
    mu = m.mean(1)  # 50 samples: the spread of their mean adds .0082 in squares
    within = 0.1 / math.sqrt(3)
    assert mu.mean().item() == pytest.approx(0, abs=0.01)
    assert mu.std().item() == pytest.approx(math.sqrt(0.25 / 3 + within**2 / 50), rel=0.02)
    assert (m - mu[:, None]).std().item() == pytest.approx(within * math.sqrt(49 / 50), rel=0.02)
    assert m.abs().max() <= 0.6
    assert (m.amax(1) - m.amin(1)).max() <= 0.2 + 1e-6
    # uniform, not merely of its standard deviation
    for q in (0.1, 0.25, 0.5, 0.75, 0.9):
        assert mu.quantile(q).item() == pytest.approx(q - 0.5, abs=0.015)


def test_the_scale_part(noise):
    """s ~ N(sigma, .1) around sigma ~ U(1, 1.25): .1 is a standard deviation."""
    s, _ = noise
    sigma = s.mean(1)
    assert sigma.mean().item() == pytest.approx(1.125, abs=0.005)
    assert sigma.std().item() == pytest.approx(math.sqrt(0.25**2 / 12 + 0.01 / 50), rel=0.02)
    within = (s - sigma[:, None]) / math.sqrt(49 / 50)
    assert within.std().item() == pytest.approx(0.1, rel=0.02)
    assert (within / 0.1).pow(4).mean().item() == pytest.approx(3, rel=0.05)  # normal


def test_independent_of_step_channel_and_part(noise):
    s, m = (part.mean(1) for part in noise)
    columns = torch.cat([s[:-1], s[1:], m[:-1], m[1:]], 1)  # channel by channel, and the next step's
    z = (columns - columns.mean(0)) / columns.std(0)
    correlation = z.T @ z / (len(z) - 1) - torch.eye(z.shape[1])
    assert correlation.abs().max() < 6 / math.sqrt(len(z))
    assert correlation.square().mean().sqrt().item() == pytest.approx(1 / math.sqrt(len(z)), rel=0.1)


def test_positions_count_as_samples():
    layer = layers.TimeVaryingNoise(3)
    s, m = layer.noise(torch.zeros(400, 3, 4, 5))
    assert s.shape == m.shape == (400, 3, 4, 5)
    assert m.std((0,)).min() > 0.05
    assert (m.mean(0) - m.mean((0, 2, 3))[:, None, None]).abs().max() < 0.02  # one mu for all positions


def test_a_shift_alone_is_cancelled_by_a_batch_norm():
    layer = layers.TimeVaryingNoise(5, per_sample=False)
    x = torch.randn(32, 5, 3, dtype=torch.float64)
    y = layer(x)
    norm = layers.BatchNorm1d(5, eps=0.0, dtype=torch.float64)
    assert (y - x).abs().mean() > 0.1
    torch.testing.assert_close(norm(y), norm(x))


def test_per_sample_noise_is_not_cancelled():
    x = torch.randn(32, 5, 3)
    norm = layers.BatchNorm1d(5, eps=0.0)
    assert (norm(layers.TimeVaryingNoise(5)(x)) - norm(x)).abs().mean() > 0.05


@pytest.mark.parametrize("strength", [0.0, 0.5, 2.0, 4.0])
def test_strength_scales_the_deviation_from_no_noise(strength):
    x = torch.randn(6, 4, dtype=torch.float64)
    one, dose = (layers.TimeVaryingNoise(4, strength=k)(x) - x for k in (1.0, strength))
    torch.testing.assert_close(dose, strength * one, rtol=1e-6, atol=1e-6)


def test_parts_alone_add_up():
    x = torch.randn(6, 4, dtype=torch.float64)
    both, none = layers.TimeVaryingNoise(4), layers.TimeVaryingNoise(4, mean=False, scale=False)
    mean, scale = layers.TimeVaryingNoise(4, scale=False), layers.TimeVaryingNoise(4, mean=False)
    assert torch.equal(none(x), x)
    s, m = both.noise(x)
    torch.testing.assert_close(mean(x), x + m)
    torch.testing.assert_close(scale(x), s * x)
    torch.testing.assert_close(both(x), s * x + m)


def test_fresh_at_each_training_forward_and_absent_in_eval():
    layer = layers.TimeVaryingNoise(4)
    x = torch.randn(6, 4)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert layer(x) is x
    assert layer.draws == 2


def test_restoring_the_buffers_replays_the_noise():
    layer = layers.TimeVaryingNoise(4, seed=3)
    x = torch.randn(6, 4)
    layer(x)
    state = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    first = [layer(x), layer(x)]
    layer.load_state_dict(state)
    assert all(torch.equal(layer(x), y) for y in first)
    again = layers.TimeVaryingNoise(4, seed=3)
    again.load_state_dict(state)
    assert torch.equal(again(x), first[0])


def test_streams_differ_by_seed():
    x = torch.zeros(64, 32)
    m = torch.stack([layers.TimeVaryingNoise(32, seed=seed).noise(x)[1].mean(0) for seed in range(40)])
    assert (torch.corrcoef(m) - torch.eye(40)).abs().max() < 0.85
    assert len({tuple(row.tolist()) for row in m}) == 40


def test_the_global_stream_is_neither_read_nor_moved():
    layer, x = layers.TimeVaryingNoise(4), torch.zeros(6, 4)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    y = layer(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(layers.TimeVaryingNoise(4)(x), y)


def test_the_gradient_passes_through_the_factor():
    layer = layers.TimeVaryingNoise(4)
    x = torch.randn(6, 4, requires_grad=True)
    s, _ = layer.noise(x)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, s)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_and_layout_of_the_input_stay(dtype):
    x = torch.randn(2, 4, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    y = layers.TimeVaryingNoise(4)(x)
    assert y.dtype == dtype
    assert y.stride() == x.stride()
    torch.testing.assert_close(
        layers.TimeVaryingNoise(4)(x.float()), y.float(), rtol=0, atol=8 * max(torch.finfo(dtype).eps, 1e-7)
    )


def test_bad_arguments_and_shapes_are_said():
    with pytest.raises(UsageError, match="scale_bound"):
        layers.TimeVaryingNoise(3, scale_bound=0.9)
    with pytest.raises(UsageError, match="below 0"):
        layers.TimeVaryingNoise(3, mean_bound=-1.0)
    with pytest.raises(UsageError, match=r"\(N, 3, \*\), got shape \(4, 5\)"):
        layers.TimeVaryingNoise(3)(torch.zeros(4, 5))
