"""Layer, group, instance and RMS norm as functions: a row of a sample by itself, whatever the others are."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from normscope import ops
from normscope._errors import UsageError
from normscope.kernels import cpu

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
F64 = torch.float64
EPS = 0.03


def standardized(rows):
    centred = rows - rows.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPS).sqrt()


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64) + 0.4


# Kernels, torch's own or this library's, and the formulas written out are each held to the definition.
WAYS = ("torch", *(() if cpu.why_not() else ("kernel",)))

# Of an input (4, 6, 5), a gain and a shift of each of six channels: the function, and its definition.
FUNCTIONS = {
    "layer": (
        lambda x, w, b: ops.layer_norm(x.mT, (6,), w, b, EPS).mT,
        lambda x, w, b: (standardized(x.mT) * w + b).mT,
    ),
    "rms": (
        lambda x, w, b: ops.rms_norm(x.mT, (6,), w, EPS).mT + b[:, None],
        lambda x, w, b: x / (x.square().mean(1, keepdim=True) + EPS).sqrt() * w[:, None] + b[:, None],
    ),
    "group": (
        lambda x, w, b: ops.group_norm(x, 2, w, b, EPS),
        lambda x, w, b: standardized(x.reshape(4, 2, -1)).view(x.shape) * w[:, None] + b[:, None],
    ),
    "instance": (
        lambda x, w, b: ops.instance_norm(x, w, b, eps=EPS),
        lambda x, w, b: standardized(x) * w[:, None] + b[:, None],
    ),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("function", "definition"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_is_its_definition_with_its_gradients(function, definition, way):
    x, w, b = (drawn(*shape, seed=i).requires_grad_() for i, shape in enumerate([(4, 6, 5), (6,), (6,)]))
    g = drawn(4, 6, 5, seed=9)
    with ops.using(way):
        found, right = function(x, w, b), definition(x, w, b)
    torch.testing.assert_close(found, right)
    torch.testing.assert_close(torch.autograd.grad(found, (x, w, b), g), torch.autograd.grad(right, (x, w, b), g))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("function", "definition"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_second_derivatives_are_those_of_the_definition_by_autograd_and_by_torch_func(function, definition, way):
    inputs = [drawn(*shape, seed=i) for i, shape in enumerate([(4, 6, 5), (6,), (6,)])]
    along = [drawn(*t.shape, seed=5 + i) for i, t in enumerate(inputs)]
    g = drawn(4, 6, 5, seed=9)

    def slope_by_autograd(f):
        leaves = [t.clone().requires_grad_() for t in inputs]
        first = torch.autograd.grad(f(*leaves), leaves, g, create_graph=True)
        total = sum((a * b).sum() for a, b in zip(first, along, strict=True))
        return torch.autograd.grad(total, leaves, materialize_grads=True)  # the shift has no part in it

    def slope_by_func(f):
        gradient = torch.func.grad(lambda *leaves: (f(*leaves) * g).sum(), argnums=(0, 1, 2))
        return torch.func.jvp(gradient, tuple(inputs), tuple(along))[1]

    right = slope_by_autograd(definition)
    with ops.using(way):
        torch.testing.assert_close(slope_by_autograd(function), right)
    torch.testing.assert_close(slope_by_func(function), right)
    twice = torch.func.jvp(lambda x: torch.func.jvp(lambda x: function(x, *inputs[1:]), (x,), (along[0],))[1],
                           (inputs[0],), (along[0],))[1]  # fmt: skip
    plain = torch.func.jvp(lambda x: torch.func.jvp(lambda x: definition(x, *inputs[1:]), (x,), (along[0],))[1],
                           (inputs[0],), (along[0],))[1]  # fmt: skip
    torch.testing.assert_close(twice, plain)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31))
def test_a_sample_is_normalized_whatever_the_others_are(seed):
    x, w, b = drawn(4, 6, 5, seed=seed), drawn(6, seed=1), drawn(6, seed=2)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    for function, _ in FUNCTIONS.values():
        y = function(x, w, b)
        torch.testing.assert_close(function(x[order], w, b), y[order])
        torch.testing.assert_close(function(torch.cat([x[:1], 10 * x[1:]]), w, b)[:1], y[:1])


@pytest.mark.parametrize("way", WAYS)
def test_running_statistics_are_averages_of_the_samples_moments(way):
    x, mean, var = drawn(4, 6, 5), drawn(6, seed=1), drawn(6, seed=2).square()
    right_mean, right_var = 0.7 * mean + 0.3 * x.mean(2).mean(0), 0.7 * var + 0.3 * x.var(2).mean(0)
    with ops.using(way):
        ops.instance_norm(x, running_mean=mean, running_var=var, momentum=0.3)
    torch.testing.assert_close((mean, var), (right_mean, right_var))
    y = ops.instance_norm(x, eps=EPS, running_mean=mean, running_var=var, use_input_stats=False)
    torch.testing.assert_close(y, (x - mean[:, None]) / (var[:, None] + EPS).sqrt())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: ops.layer_norm(x, (5, 6)), "last axes are"),
        (lambda x: ops.layer_norm(x, (5,), torch.ones(6)), "weight and bias of shape"),
        (lambda x: ops.rms_norm(x.long(), (5,)), "floating"),
        (lambda x: ops.group_norm(x, 4), "do not split into 4 equal groups"),
        (lambda x: ops.group_norm(x, 2, torch.ones(5)), "one value for each of the 6 channels"),
        (lambda x: ops.instance_norm(x[:, :, :1]), "more than 1 spatial element"),
        (lambda x: ops.instance_norm(x, use_input_stats=False), "running_mean and running_var are needed"),
        (lambda x: ops.instance_norm(x[0, 0]), "expected floating values"),
    ],
)
def test_what_does_not_fit_is_said(call, words):
    with pytest.raises(UsageError, match=words):
        call(drawn(4, 6, 5))
