"""Weight standardization: its definition, what it makes of Gaussian signals, and its laws."""

import copy
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils import parametrize

from normscope import layers
from normscope._errors import UsageError
from normscope.layers import WeightStandardization, weight_standardize

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

GAIN = math.sqrt(2 / (1 - 1 / math.pi))
MODULES = {
    "linear": lambda: nn.Linear(12, 5),
    "conv1d": lambda: nn.Conv1d(4, 5, 3),
    "conv2d": lambda: nn.Conv2d(4, 5, 3),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "conv3d": lambda: nn.Conv3d(2, 5, 3),
    "transposed": lambda: nn.ConvTranspose2d(4, 5, 3),
}


def rows_of(module):
    """The weights into each unit."""
    return module.weight.transpose(0, 1).flatten(1) if "Transpose" in repr(module) else module.weight.flatten(1)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("scaled", [True, False])
def test_each_unit_has_mean_0_and_its_norm(name, scaled):
    module = MODULES[name]().double()
    original = copy.deepcopy(module)
    assert weight_standardize(module, 1.5, scaled=scaled) is module
    rows, before = rows_of(module), rows_of(original)
    n = rows.shape[1]
    torch.testing.assert_close(rows.mean(1), torch.zeros_like(rows[:, 0]), atol=1e-12, rtol=0)
    size = 1.5 if scaled else 1.5 * math.sqrt(n)
    torch.testing.assert_close(rows.norm(dim=1), torch.full_like(rows[:, 0], size), rtol=1e-4, atol=0)
    centred = before - before.mean(1, keepdim=True)
    var = centred.square().mean(1, keepdim=True)
    wanted = 1.5 * centred / (n * var + 1e-6).sqrt() * (1 if scaled else math.sqrt(n))
    torch.testing.assert_close(rows, wanted, rtol=1e-12, atol=1e-12)


def test_the_gain_of_an_activation_keeps_the_variance():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(4000, 1000, generator=generator)
    for activation, gain in ((torch.relu, GAIN), (torch.tanh, None)):
        linear = nn.Linear(1000, 500, bias=False)
        with torch.no_grad():  # from the inputs' generator: the global one may be seeded to give the inputs once more
            linear.weight.copy_(torch.randn(500, 1000, generator=generator))
        layer = weight_standardize(linear, activation)
        if gain is not None:
            assert layer.parametrizations.weight[0].gain == pytest.approx(gain, rel=1e-9)
        with torch.no_grad():
            out = layer(activation(z))
        assert float(out.var(0).mean()) == pytest.approx(1, rel=0.01)
        assert float(out.mean(0).abs().max()) < 0.1  # whatever the mean of the inputs: all have the same


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.floats(0.01, 100), st.floats(-5, 5))
def test_shift_and_scale_of_a_unit_change_nothing(seed, scale, shift):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64).requires_grad_()
    rule = WeightStandardization(gain=1.7, eps=0.0)
    standard = rule(weight)
    torch.testing.assert_close(rule(weight * scale + shift), standard, rtol=1e-9, atol=1e-9)
    (g,) = torch.autograd.grad(standard, weight, torch.randn_like(standard))
    for direction in (torch.ones_like(weight), weight.detach()):
        assert float((g * direction).flatten(1).sum(1).abs().max()) < 1e-9 * float(g.norm() * direction.norm())


def test_derivatives():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64).requires_grad_()
    rule = WeightStandardization(3, 1.3, learn_gain=True).double()
    rule.factor.data.copy_(torch.tensor([0.3, -1.2, 2.0]))

    def f(weight, factor):
        return torch.func.functional_call(rule, {"factor": factor}, (weight,))

    assert gradcheck(f, (weight, rule.factor), check_forward_ad=True)
    assert gradgradcheck(f, (weight, rule.factor))


def test_is_torchs_parametrization():
    layer = weight_standardize(nn.Linear(6, 3), learn_gain=True)
    assert set(layer.state_dict()) == {"bias", "parametrizations.weight.original", "parametrizations.weight.0.factor"}
    twin = copy.deepcopy(layer)
    other = weight_standardize(nn.Linear(6, 3), learn_gain=True)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(2, 6)
    assert torch.equal(twin(x), layer(x))
    assert torch.equal(other(x), layer(x))
    wanted = layer.weight.detach().clone()
    twin.weight = torch.ones(3, 6)  # assigned: what is standardized
    assert torch.equal(twin.weight, torch.zeros(3, 6))
    parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(layer.weight, wanted)
    assert type(layer) is nn.Linear


def test_weights_that_are_all_equal_are_zero():
    layer = weight_standardize(nn.Linear(6, 3))
    nn.init.zeros_(layer.parametrizations.weight.original)
    layer.weight.sum().backward()
    assert torch.equal(layer.weight, torch.zeros(3, 6))
    assert layer.parametrizations.weight.original.grad.isfinite().all()


def test_low_precision_weights_have_float32_statistics():
    layer = nn.Linear(4096, 2, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.add_(1)
    exact = WeightStandardization()(layer.weight.double())
    weight = weight_standardize(layer).weight
    assert weight.dtype == torch.bfloat16
    torch.testing.assert_close(weight.double(), exact, rtol=2**-7, atol=0)


def test_weight_norm_is_torchs():
    layer = layers.weight_norm(nn.Linear(6, 3))
    v, g = layer.parametrizations.weight.original1, layer.parametrizations.weight.original0
    torch.testing.assert_close(layer.weight, g * v / v.norm(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("no parameter 'weight'", lambda: weight_standardize(nn.ReLU())),
        ("no parameter 'bias'", lambda: weight_standardize(nn.Linear(3, 3), name="bias")),
        ("standardized already", lambda: weight_standardize(weight_standardize(nn.Linear(3, 3)))),
        ("groups=1", lambda: weight_standardize(nn.ConvTranspose2d(4, 4, 3, groups=2))),
        ("give units", lambda: WeightStandardization(learn_gain=True)),
    ],
)
def test_bad_arguments(words, call):
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_whole():
    layer = weight_standardize(nn.Conv2d(3, 4, 3).double(), torch.relu)
    twin = copy.deepcopy(layer)
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    y, wanted = torch.compile(layer, fullgraph=True)(x), twin(x)
    torch.testing.assert_close(y, wanted)
    y.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(layer.parametrizations.weight.original.grad, twin.parametrizations.weight.original.grad)
