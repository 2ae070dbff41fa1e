"""Dynamic tanh: its paper's code, the place of a layer norm, and what it refuses."""

import copy
import pickle

import pytest
import torch
from torch import nn

from normscope import layers
from normscope._errors import UsageError


class Published(nn.Module):
    """The layer as Zhu et al. (2025) print it."""

    def __init__(self, features, start=0.5):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1) * start)
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x):
        return torch.tanh(self.alpha * x) * self.weight + self.bias


def drawn(layer, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def test_is_the_published_layer_and_loads_its_checkpoints():
    published = Published(6)
    ours = layers.DynamicTanh(6)
    assert {name: p.tolist() for name, p in ours.named_parameters()} == {
        name: p.tolist() for name, p in published.named_parameters()
    }
    ours.load_state_dict(drawn(published).state_dict())
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    g = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(2))
    found = [ours(x), *torch.autograd.grad(ours(x), [x, *ours.parameters()], g)]
    right = [published(x), *torch.autograd.grad(published(x), [x, *published.parameters()], g)]
    torch.testing.assert_close(found, right)


def test_takes_the_place_of_a_layer_norm_with_its_gain_and_shift():
    norm = drawn(nn.LayerNorm((3, 5)))
    layer = layers.DynamicTanh((3, 5))
    missing = layer.load_state_dict(norm.state_dict(), strict=False)
    assert missing.missing_keys == ["alpha"]
    x = torch.randn(2, 3, 5)
    torch.testing.assert_close(layer(x), torch.tanh(x / 2) * norm.weight + norm.bias)
    assert layer(x).shape == norm(x).shape


def test_small_values_pass_in_proportion_and_large_values_come_out_as_the_gain():
    layer = drawn(layers.DynamicTanh(4, dtype=torch.float64), 3)
    alpha, weight, bias = layer.alpha, layer.weight, layer.bias
    x = torch.randn(7, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(1e-4 * x) - bias, weight * alpha * 1e-4 * x, rtol=1e-6, atol=1e-15)
    large = (1e3 * x.sign() / alpha.abs()).requires_grad_()
    y = layer(large)
    torch.testing.assert_close(y, weight * alpha.sign() * x.sign() + bias)
    assert torch.autograd.grad(y.sum(), large)[0].abs().max() < 1e-100


def test_bfloat16_is_rounded_once():
    layer = drawn(layers.DynamicTanh(64, dtype=torch.bfloat16))
    x = (4 * torch.randn(50, 64)).to(torch.bfloat16)
    exact = copy.deepcopy(layer).double()(x.double())
    y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), exact, rtol=0.505 * torch.finfo(torch.bfloat16).eps, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "names", "words"),
    [
        ({}, ["alpha", "weight", "bias"], "(6,), elementwise_affine=True, bias=True"),
        ({"bias": False}, ["alpha", "weight"], "(6,), elementwise_affine=True, bias=False"),
        ({"elementwise_affine": False}, ["alpha"], "(6,), elementwise_affine=False"),
    ],
)
def test_options_state_and_words(options, names, words):
    layer = drawn(layers.DynamicTanh(6, **options, dtype=torch.float64))
    assert list(layer.state_dict()) == names
    assert repr(layer) == f"DynamicTanh({words})"
    assert all(p.dtype == torch.float64 for p in layer.parameters())
    x = torch.randn(2, 6, dtype=torch.float64)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    assert layers.DynamicTanh(6, device="meta").alpha.is_meta


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("last axes are", lambda: layers.DynamicTanh(5)(torch.ones(4, 6))),
        ("floating", lambda: layers.DynamicTanh(5)(torch.ones(4, 5, dtype=torch.int64))),
        ("give a number but 0", lambda: layers.DynamicTanh(5, alpha=0.0)),
        ("give a number but 0", lambda: layers.DynamicTanh(5, alpha=float("nan"))),
        ("one size or several", lambda: layers.DynamicTanh(())),
        ("one size or several", lambda: layers.DynamicTanh(0)),
    ],
)
def test_bad_arguments(words, call):
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_alpha_is_one_number():
    layer = layers.DynamicTanh(5)
    layer.alpha = nn.Parameter(torch.ones(5))
    with pytest.raises(UsageError, match="alpha is one number"):
        layer(torch.ones(4, 5))


def test_an_empty_batch_passes():
    layer = layers.DynamicTanh(5)
    y = layer(torch.empty(0, 5, requires_grad=True))
    y.sum().backward()
    assert y.shape == (0, 5)
    assert float(layer.alpha.grad) == 0
