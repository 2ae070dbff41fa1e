"""What stands between a linear layer and its activation: each arm is what its name says."""

import pytest
import torch
from torch.nn.functional import batch_norm

from normscope.studies.lab import norms
from normscope.studies.lab.models import Place

SHAPES = {False: (32, 5), True: (8, 5, 3, 4)}


def sample(spatial: bool) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return 3 + 2 * torch.randn(SHAPES[spatial], dtype=torch.float64, generator=g)


def place(spatial: bool = False) -> Place:
    return Place(0, 5, spatial)


@pytest.mark.parametrize("spatial", [False, True])
@pytest.mark.parametrize(("mean", "variance"), [(True, False), (False, True), (True, True), (False, False)])
def test_detached_is_batch_norm_forward_with_terms_missing_backward(spatial, mean, variance):
    """The gradient is the sum of the terms not cut, each from its own formula."""
    x = sample(spatial).requires_grad_()
    layer = norms.detached(mean=mean, variance=variance)(place(spatial)).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -2.0, 1.5, 0.1, 3.0]))
        layer.bias.copy_(torch.arange(5.0))
    y = layer(x)
    reference = batch_norm(x, None, None, layer.weight, layer.bias, True, 0.1, layer.eps)
    torch.testing.assert_close(y, reference)
    upstream = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.3
    y.backward(upstream)
    axes = [0, *range(2, x.dim())]
    shape = [1, -1] + [1] * (x.dim() - 2)
    with torch.no_grad():
        centred = x - x.mean(axes, keepdim=True)
        rstd = (centred.square().mean(axes, keepdim=True) + layer.eps).rsqrt()
        xhat = centred * rstd
        scale = layer.weight.view(shape) * rstd
        expected = scale * upstream
        if not mean:
            expected = expected - scale * upstream.mean(axes, keepdim=True)
        if not variance:
            expected = expected - scale * xhat * (upstream * xhat).mean(axes, keepdim=True)
    torch.testing.assert_close(x.grad, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("spatial", [False, True])
def test_detached_keeps_the_running_statistics_of_batch_norm(spatial):
    mine = norms.detached(mean=True, variance=True)(place(spatial)).double()
    torchs = torch.nn.BatchNorm2d(5).double() if spatial else torch.nn.BatchNorm1d(5).double()
    for _ in range(3):
        x = sample(spatial)
        mine(x), torchs(x)
    for name, value in torchs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value)
    torch.testing.assert_close(mine.eval()(x), torchs.eval()(x))


def test_noise_in_front_of_batch_norm_cancels_if_all_samples_shift_together():
    x = sample(False)
    plain, common = norms.batch()(place()).double(), norms.noise_before_batch(0)(place()).double()
    apart = norms.noise_before_batch(0, per_sample=True)(place()).double()
    torch.testing.assert_close(common(x), plain(x), rtol=1e-4, atol=1e-5)
    assert (apart(x) - plain(x)).abs().max() > 1e-2


def test_noise_behind_batch_norm_does_not_cancel_and_changes_each_time():
    x = sample(False)
    noisy = norms.noisy_batch(0, per_sample=False)(place()).double()
    once, twice = noisy(x), noisy(x)
    assert (once - twice).abs().max() > 1e-2
    quiet = norms.noisy_batch(0, strength=0.0)(place()).double()
    torch.testing.assert_close(quiet(x), norms.batch()(place()).double()(x))


def test_rescaled_noise_is_in_units_of_the_spread():
    """Noise measured in standard deviations commutes with a change of scale; absolute noise does not."""
    x = sample(False) - 3

    def noised(factory, scale):
        return factory(place()).double()(scale * x) / scale

    rescaled = [noised(norms.noise(0, rescaled=True), s) for s in (1.0, 100.0)]
    absolute = [noised(norms.noise(0), s) for s in (1.0, 100.0)]
    torch.testing.assert_close(*rescaled, rtol=1e-3, atol=1e-4)
    assert (absolute[0] - absolute[1]).abs().max() > 0.05


def test_noise_rests_in_eval():
    x = sample(False)
    for factory in (norms.noise(0), norms.noise(0, rescaled=True)):
        torch.testing.assert_close(factory(place()).double().eval()(x), x)


def test_places_and_seeds_have_noise_of_their_own():
    x = sample(False)
    outs = [norms.noise(seed)(Place(index, 5)).double()(x) for seed, index in ((0, 0), (0, 1), (1, 0))]
    assert (outs[0] - outs[1]).abs().max() > 1e-2
    assert (outs[0] - outs[2]).abs().max() > 1e-2
    torch.testing.assert_close(outs[0], norms.noise(0)(Place(0, 5)).double()(x))
