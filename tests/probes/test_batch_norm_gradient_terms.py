"""Energy shares of batch norm's backward terms, against the terms written out and the theory of random gradients."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from kit import varied_networks as nets
from kit.empty_steps import EMPTY_STEPS
from kit.readings import read
from normscope import layers, ops
from normscope.modules.channels import channels
from normscope.probes import BatchNormGradientTerms

pytestmark = EMPTY_STEPS

NAMES = ("mean_share", "variance_share", "rescale_error", "rescale_cosine", "sigma", "gain")


@torch.no_grad()
def twin(x, gradient, module):
    """Form the three terms as tensors and compare their energies."""
    rescale, mean, variance = ops.batch_norm_backward_terms(gradient, x, module.weight, module.eps)
    whole, passed = rescale.square().sum(), (rescale + mean + variance).square().sum()
    without_mean = (rescale + mean).square().sum()
    axes = [axis for axis in range(x.ndim) if axis != 1]
    sigma = (x.var(axes, correction=0) + module.eps).sqrt()
    values = [
        (whole - without_mean) / whole,
        (without_mean - passed) / whole,
        ((mean + variance).square().sum() / passed).sqrt(),
        (rescale * (rescale + mean + variance)).sum() / (whole * passed).sqrt(),
        sigma.mean(),
        ((1 if module.weight is None else module.weight.abs()) / sigma).mean(),
    ]
    return dict(zip(NAMES, map(float, values), strict=True))


KINDS = {
    "torch": (lambda: nn.BatchNorm1d(7, eps=0.3), (16, 7)),
    "positions": (lambda: nn.BatchNorm1d(7, eps=0.3), (16, 7, 5)),
    "images": (lambda: nn.BatchNorm2d(3), (4, 3, 5, 6)),
    "last": (lambda: nn.BatchNorm2d(3).to(memory_format=torch.channels_last), (4, 3, 5, 6)),
    "untracked": (lambda: nn.BatchNorm2d(3, affine=False, track_running_stats=False).eval(), (4, 3, 5, 6)),
    "ours": (lambda: layers.BatchNorm2d(3), (4, 3, 5, 6)),
    "volumes": (lambda: layers.BatchNorm3d(3), (4, 3, 2, 3, 2)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mean", [0.0, 3.0, 1e6])
def test_shares_are_those_of_the_terms_written_out(kind, mean):
    torch.manual_seed(0)
    module, shape = KINDS[kind][0]().double(), KINDS[kind][1]
    if module.weight is not None:
        nn.init.uniform_(module.weight, -2, 2)
        nn.init.uniform_(module.bias, -2, 2)
    x, gradient = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    gradient += 0.5 * x + 0.3
    if kind == "last":
        x = x.contiguous(memory_format=torch.channels_last)
    x = (x * torch.arange(1, shape[1] + 1).view(-1, *[1] * (len(shape) - 2)) + mean).requires_grad_()
    found = read(module, lambda m, b: (m(b) * gradient).sum(), x, BatchNormGradientTerms())
    expected = twin(x.detach(), gradient, module)
    assert {name for _, name in found} == set(NAMES)
    for name, value in expected.items():
        assert found["", name] == pytest.approx(value, rel=1e-10 if mean < 1e6 else 1e-5), name


def test_a_planted_wrong_sign_is_seen(monkeypatch):
    """The comparison above fails for a variance term of the wrong size."""
    real = ops.batch_norm_backward_terms
    monkeypatch.setattr(ops, "batch_norm_backward_terms", lambda *a: real(*a)._replace(variance_coupling=-real(*a)[2]))
    with pytest.raises(AssertionError, match=r"share|error|cosine"):
        test_shares_are_those_of_the_terms_written_out("images", 3.0)


def keep(inputs, outputs, name, module, taken, output):
    inputs[name], outputs[name] = taken[0], output


def test_inside_a_network_in_train_mode():
    model, (batch,) = nets.make("cnn", dtype=torch.float64), nets.batches("cnn", 1, dtype=torch.float64)
    outputs, inputs = {}, {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(partial(keep, inputs, outputs, name))
        if isinstance(module, nn.ReLU):
            module.inplace = False
    loss = nets.loss_fn(model, batch)
    gradients = dict(zip(outputs, torch.autograd.grad(loss, list(outputs.values())), strict=True))
    expected = {name: twin(inputs[name].detach(), gradients[name], model.get_submodule(name)) for name in outputs}
    found = read(nets.make("cnn", dtype=torch.float64), nets.loss_fn, batch, BatchNormGradientTerms())
    assert list(dict.fromkeys(site for site, _ in found)) == list(expected)
    for name, values in expected.items():
        for key, value in values.items():
            assert found[name, key] == pytest.approx(value, rel=1e-9), (name, key)


@pytest.mark.parametrize("m", [16, 64, 256])
def test_an_uninformative_gradient_loses_one_share_in_m_to_each_term(m):
    torch.manual_seed(m)
    width = 4000
    module = nn.BatchNorm1d(width, eps=1e-12)
    nn.init.uniform_(module.weight, 0.5, 1.5)
    x, gradient = torch.randn(m, width, requires_grad=True), torch.randn(m, width)
    found = read(module, lambda m, b: (m(b) * gradient).sum(), x, BatchNormGradientTerms())
    # The share of a channel spreads by about sqrt(2)/m: 4000 channels give it to 3 %.
    assert found["", "mean_share"] == pytest.approx(1 / m, rel=0.1)
    assert found["", "variance_share"] == pytest.approx(1 / m, rel=0.1)
    assert found["", "rescale_error"] == pytest.approx(math.sqrt(2 / (m - 2)), rel=0.05)
    removed = found["", "mean_share"] + found["", "variance_share"]
    assert found["", "rescale_cosine"] == pytest.approx(math.sqrt(1 - removed), rel=1e-5)


def test_calls_are_pooled_and_eval_mode_has_no_terms():
    module = nn.BatchNorm1d(3).double()
    x = torch.randn(2, 8, 3, dtype=torch.float64, requires_grad=True)
    g = torch.randn(2, 8, 3, dtype=torch.float64)

    def loss_fn(m, b):
        return sum((m(x) * g).sum() for x, g in zip(b, g, strict=True))

    found = read(module, loss_fn, x, BatchNormGradientTerms())
    module.requires_grad_(False)
    terms = [ops.batch_norm_backward_terms(b, a.detach(), module.weight, module.eps) for a, b in zip(x, g, strict=True)]
    whole = sum(t.rescale.square().sum() for t in terms)
    error = sum((t.mean_coupling + t.variance_coupling).square().sum() for t in terms)
    passed = sum(t.total().square().sum() for t in terms)
    assert found["", "mean_share"] == pytest.approx(float(sum(t.mean_coupling.square().sum() for t in terms) / whole))
    assert found["", "rescale_error"] == pytest.approx(float((error / passed).sqrt()))
    assert read(module.eval(), loss_fn, x, BatchNormGradientTerms()) == {}


def test_no_gradient_has_no_shares_and_a_gradient_that_is_none_is_told():
    module = nn.BatchNorm1d(3)
    x = torch.randn(8, 3, requires_grad=True)
    found = read(module, lambda m, b: (m(b) * 0).sum(), x, BatchNormGradientTerms())
    assert all(math.isnan(found["", name]) for name in NAMES[:4])
    assert found["", "gain"] == pytest.approx(found["", "gain"])
    found = read(module, lambda m, b: (m(b) * math.nan).sum(), x, BatchNormGradientTerms())
    assert all(math.isnan(found["", name]) for name in NAMES[:4])
    assert read(module, lambda m, b: m(b).sum(), x, BatchNormGradientTerms(), block=lambda: module(x)) == {}


@given(
    st.integers(2, 6),
    st.integers(1, 4),
    st.sampled_from([(), (1,), (5,), (2, 3)]),
    st.floats(-1e4, 1e4),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_channel_moments_are_those_of_the_batch(size, width, rest, mean, dtype):
    torch.manual_seed(size)
    x = (torch.randn(size, width, *rest, dtype=torch.float64) + mean).to(dtype)
    other = torch.randn(size, width, *rest).to(dtype)
    seen, wide = channels(x), x.double()
    axes = [0, *range(2, x.ndim)]
    shape = [1, width, *[1] * len(rest)]
    deviations = wide - wide.mean(axes).view(shape)
    rounding = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-6}[dtype] * (1 + abs(mean))
    within = {"rtol": 1e-3 if dtype != torch.float64 else 1e-8, "atol": 30 * rounding * (1 + rounding)}
    torch.testing.assert_close(seen.mean.double(), wide.mean(axes), rtol=1e-6, atol=rounding)
    torch.testing.assert_close(seen.variance.double(), deviations.square().mean(axes), **within)
    sample = list(range(2, x.ndim))
    offsets = deviations.sum(sample) if sample else deviations
    squares = deviations.square().sum(sample) if sample else deviations.square()
    offset, square = seen.deviations()
    torch.testing.assert_close(offset.double(), offsets, **within)
    torch.testing.assert_close(square.double(), squares, **within)
    total, square, product = seen.inner(other)
    torch.testing.assert_close(total.double(), other.double().sum(axes), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(square.double(), other.double().square().sum(axes), rtol=1e-4, atol=1e-4)
    expected = (other.double() * deviations).sum(axes)
    torch.testing.assert_close(product.double(), expected, rtol=1e-3, atol=100 * rounding + 1e-4)
