"""Lp, layer, group, instance and RMS norm, dynamic tanh: derivatives of every kind, transforms, types, compiled."""

import copy
import math
import pickle
import sys

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

from normscope import layers
from normscope._errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

SHAPE = (3, 4, 2, 2)
MAKE = {
    "layer": lambda **o: layers.LayerNorm(SHAPE[1:], **o),
    "rms": lambda **o: layers.RMSNorm(SHAPE[1:], **o),
    "tanh": lambda **o: layers.DynamicTanh(SHAPE[1:], **o),
    "group": lambda **o: layers.GroupNorm(2, 4, **o),
    "instance": lambda **o: layers.InstanceNorm2d(4, affine=True, **o),
    "instance tracked": lambda **o: layers.InstanceNorm2d(4, affine=True, track_running_stats=True, **o),
    "lp 1": lambda **o: layers.LpNorm(4, 1, **o),
    "lp 2": lambda **o: layers.LpNorm(4, 2, **o),
    "lp inf": lambda **o: layers.LpNorm(4, math.inf, **o),
    "lp 1 centred": lambda **o: layers.LpNorm(4, 1, centred=True, gaussian=True, **o),
}


def made(name, dtype=torch.float64, seed=0):
    layer = MAKE[name](dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer


def values(dtype=torch.float64, seed=7, shape=SHAPE):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 1).to(dtype)


def as_function(layer):
    names = [name for name, _ in layer.named_parameters()]
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}

    def f(x, *parameters):
        own = {name: buffer.clone() for name, buffer in buffers.items()}
        return functional_call(layer, {**dict(zip(names, parameters, strict=True)), **own}, (x,))

    return f, [values().requires_grad_(), *layer.parameters()]


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("training", [True, False])
def test_derivatives_of_every_kind(name, training):
    f, inputs = as_function(made(name).train(training))
    assert gradcheck(f, inputs, check_forward_ad=True)
    assert gradgradcheck(f, inputs, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True)


def rule_is_the_kernel(f, inputs):
    y = f(*inputs)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)
    kernel = torch.autograd.grad(y, inputs, g, retain_graph=True)
    rule = torch.autograd.grad(y, inputs, g, create_graph=True)
    torch.testing.assert_close(rule, kernel, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", MAKE)
def test_the_written_rule_is_the_kernels(name):
    rule_is_the_kernel(*as_function(made(name)))


@pytest.mark.parametrize(
    ("name", "room"),
    [("layer", "rows"), ("group", "rows"), ("instance tracked", "ways.torchs"), ("rms", "lp"), ("lp 1", "lp")],
)
def test_a_wrong_sign_is_caught(monkeypatch, name, room):
    module = sys.modules[f"normscope.ops.{room}"]
    true = module.backward

    def wrong(g, *rest):
        found = true(g, *rest)
        if not isinstance(found, tuple):
            return -found
        return (found[0] if g is None else -found[0]), *found[1:]

    monkeypatch.setattr(module, "backward", wrong)
    f, inputs = as_function(made(name))
    # Where a kernel stands in for the rule, gradcheck sees the kernel, and gradgradcheck the wrong rule twice.
    with pytest.raises(AssertionError if room != "lp" else GradcheckError):
        (rule_is_the_kernel if room != "lp" else gradcheck)(f, inputs)


@pytest.mark.parametrize("name", MAKE)
def test_many_networks_at_once(name):
    ensemble = [made(name, seed=seed) for seed in range(3)]
    parameters, buffers = stack_module_state(ensemble)
    base = copy.deepcopy(ensemble[0]).to("meta")
    x = torch.stack([values(seed=seed) for seed in range(3)])

    def one(parameters, buffers, x):
        return functional_call(base, (parameters, buffers), (x,))

    y = vmap(one)(parameters, buffers, x)
    for index, layer in enumerate(ensemble):
        torch.testing.assert_close(y[index], layer(x[index]))
    for key, stacked in buffers.items():
        for index, layer in enumerate(ensemble):
            torch.testing.assert_close(stacked[index], layer.get_buffer(key))


@pytest.mark.parametrize("name", MAKE)
def test_gradients_of_each_sample(name):
    # each sample is its own batch here: of two values or more a channel, so that it can be normalized
    layer = made(name).eval()
    x = values()

    def loss(x):
        return functional_call(layer, dict(layer.named_parameters()), (x[None],)).square().sum()

    each = vmap(grad(loss))(x)
    for sample, g in zip(x, each, strict=True):
        torch.testing.assert_close(g, grad(loss)(sample))
    _, t = jvp(loss, (x[0],), (x[1],))
    torch.testing.assert_close(t, (each[0] * x[1]).sum())
    _, along = jvp(lambda x: jvp(loss, (x,), (values(seed=9)[0],))[1], (x[0],), (x[1],))
    _, h = jvp(grad(loss), (x[0],), (x[1],))
    torch.testing.assert_close(along, (h * values(seed=9)[0]).sum())


@pytest.mark.parametrize("name", MAKE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [True, False])
def test_low_precision(name, dtype, training):
    layer = made(name, dtype).train(training)
    x = (values(dtype=torch.float64) + 50).to(dtype)
    exact = copy.deepcopy(layer).double()
    if getattr(exact, "eps", 0) is None:
        exact.eps = torch.finfo(torch.float32).eps
    wanted, y = exact(x.double()), layer(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), wanted, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-4)


def test_running_statistics_of_lp_norm_are_float32():
    layer = layers.LpNorm(4, dtype=torch.bfloat16)
    assert layer.weight.dtype == torch.bfloat16
    assert layer.running_mean.dtype == layer.running_norm.dtype == torch.float32
    assert layers.LpNorm(4, dtype=torch.float64).running_norm.dtype == torch.float64


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_lp_norm_remembers(p):
    layer = layers.LpNorm(3, p, momentum=None, dtype=torch.float64)
    batches = values(shape=(6, 5, 3, 4))
    norms = []
    for batch in batches:
        layer(batch)
        rows = batch.transpose(0, 1).flatten(1)
        norms.append(rows.norm(p, 1) / (1 if p == math.inf else 20 ** (1 / p)))
    assert int(layer.num_batches_tracked) == 6
    torch.testing.assert_close(layer.running_mean, batches.mean((0, 1, 3)))
    torch.testing.assert_close(layer.running_norm, torch.stack(norms).mean(0))
    layer.eval()
    x = values(shape=(5, 3, 4))
    wanted = (x - layer.running_mean[:, None]) / (layer.running_norm.square() + layer.eps).sqrt()[:, None]
    torch.testing.assert_close(layer(x), wanted)
    torch.testing.assert_close(layer(x[:1]), wanted[:1])  # a sample alone is the same
    assert int(layer.num_batches_tracked) == 6
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), layer(x))
    other = layers.LpNorm(3, p, dtype=torch.float64).eval()
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_lp_norm_that_fails_leaves_no_trace():
    layer = layers.LpNorm(3)
    with pytest.raises(ValueError, match="more than 1 value"):
        layer(torch.ones(1, 3))
    assert int(layer.num_batches_tracked) == 0
    assert torch.equal(layer.running_mean, torch.zeros(3))


def test_lp_norm_without_memory_and_without_parameters():
    layer = layers.LpNorm(3, affine=False, track_running_stats=False)
    assert not layer.state_dict()
    x = torch.randn(8, 3)
    assert torch.equal(layer(x), layer.eval()(x))


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_lp_norm_offsets_cost_no_digits(p, layout):
    for centred, offsets in ((True, (0, 1e2, 1e4, 1e6)), (False, (0, 1e2))):
        for offset in offsets:
            x = (values(torch.float32, shape=(8, 4, 16, 16)) + offset).contiguous(memory_format=layout)
            layer = layers.LpNorm(4, p, centred=centred)
            y, wanted = layer(x).detach().double(), copy.deepcopy(layer).double()(x.double()).detach()
            assert y.is_contiguous(memory_format=layout)
            torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
            # undivided by its offset, the output before the shift of the mean is small: right to its own size
            assert float((y - wanted).abs().max() / wanted.abs().max()) < 1e-5


def test_lp_norm_of_nothing():
    layer = layers.LpNorm(3)
    y = layer(torch.empty(0, 3, 5, requires_grad=True))
    y.sum().backward()
    assert y.shape == (0, 3, 5)
    assert torch.equal(layer.running_norm, torch.ones(3))


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("give 1, 2 or math.inf", lambda: layers.LpNorm(3, 3)),
        ("expected an input", lambda: layers.LpNorm(3)(torch.ones(4, 2))),
    ],
)
def test_bad_arguments(words, call):
    with pytest.raises(UsageError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_scalars():
    x = values()
    assert torch.equal(layers.ScalarGain(0.5)(x), x / 2)
    assert torch.equal(layers.ScalarBias()(x), x)
    assert not list(layers.ScalarGain(0.5, learn=False).parameters())
    gain, bias = layers.ScalarGain(0.0).double(), layers.ScalarBias().double()
    (gain(x).sum() + bias(x).sum()).backward()
    torch.testing.assert_close(gain.value.grad, x.sum())
    assert float(bias.value.grad) == x.numel()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layer", "rms", "tanh", "group", "instance", "lp 1", "lp inf"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiles_whole(name):
    layer, twin = made(name), made(name)
    compiled = torch.compile(layer, fullgraph=True)
    x = values().requires_grad_()
    z = values().requires_grad_()
    y, wanted = compiled(x), twin(z)
    torch.testing.assert_close(y, wanted)
    g = torch.randn_like(y)
    y.backward(g)
    wanted.backward(g)
    torch.testing.assert_close(x.grad, z.grad)
    for ours, theirs in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for ours, theirs in zip(layer.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
