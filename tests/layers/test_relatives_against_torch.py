"""Layer, group, instance and RMS norm: torch's modules, in numbers, state and kind; and where torch loses digits."""

import copy
import pickle

import pytest
import torch
from torch import nn

from normscope import layers

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

# name: (arguments, shape of the input)
CASES = {
    "LayerNorm": [((5,), (7, 5)), (((3, 5),), (4, 3, 5)), (((5,), 1e-3), (2, 3, 4, 5)), (((4, 5),), (2, 3, 4, 5))],
    "RMSNorm": [((5,), (7, 5)), (((3, 5),), (4, 3, 5)), (((5,), 1e-3), (2, 3, 4, 5)), ((5,), (5,))],
    "GroupNorm": [((3, 6), (7, 6)), ((2, 6), (4, 6, 5)), ((1, 6), (2, 6, 4, 3)), ((6, 6), (2, 6, 2, 3, 2))],
    "InstanceNorm1d": [((3,), (4, 3, 5)), ((3,), (3, 5))],
    "InstanceNorm2d": [((3,), (4, 3, 5, 4)), ((3,), (3, 5, 4))],
    "InstanceNorm3d": [((3,), (2, 3, 2, 3, 4)), ((3,), (3, 2, 3, 4))],
}
FLAT = [(name, args, shape) for name, cases in CASES.items() for args, shape in cases]


def affine_option(name):
    return "elementwise_affine" if name in ("LayerNorm", "RMSNorm") else "affine"


def pair(name, args, affine=True, dtype=torch.float64, **options):
    """Ours and torch's, with the same parameters: gains not 1, shifts not 0."""
    options[affine_option(name)] = affine
    ours = getattr(layers, name)(*args, dtype=dtype, **options)
    theirs = getattr(nn, name)(*args, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(1)
    for parameter in theirs.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def values(shape, dtype=torch.float64, layout=None):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 + 1
    return x.to(dtype) if layout is None else x.to(dtype).contiguous(memory_format=layout)


def same(found, wanted, tolerance=1e-12):
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("name", "args", "shape"), FLAT)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_numbers(name, args, shape, affine, training):
    ours, theirs = pair(name, args, affine)
    assert isinstance(ours, type(theirs))
    assert ours.train(training).state_dict().keys() == theirs.train(training).state_dict().keys()
    x = values(shape).requires_grad_()
    y, z = ours(x), theirs(x)
    same(y, z)
    g = torch.randn_like(y)
    for found, wanted in zip(
        torch.autograd.grad(y, [x, *ours.parameters()], g),
        torch.autograd.grad(z, [x, *theirs.parameters()], g),
        strict=True,
    ):
        same(found, wanted)


@pytest.mark.parametrize(
    ("name", "args", "shape", "layout"),
    [
        ("GroupNorm", (2, 4), (2, 4, 3, 5), torch.channels_last),
        ("GroupNorm", (2, 4), (2, 4, 3, 5, 2), torch.channels_last_3d),
        ("InstanceNorm2d", (4,), (2, 4, 3, 5), torch.channels_last),
        ("InstanceNorm3d", (4,), (2, 4, 3, 5, 2), torch.channels_last_3d),
        ("LayerNorm", (5,), (2, 4, 3, 5), torch.channels_last),
        ("RMSNorm", (5,), (2, 4, 3, 5), torch.channels_last),
    ],
)
def test_layouts(name, args, shape, layout):
    ours, _ = pair(name, args)
    x = values(shape, layout=layout).requires_grad_()
    y, z = ours(x), ours(x.contiguous())
    same(y, z)
    if name[0] in "GI":
        assert y.is_contiguous(memory_format=layout)
    g = torch.randn_like(y)
    same(torch.autograd.grad(y, x, g), torch.autograd.grad(z, x, g))
    strided = values((shape[0], shape[1], 2 * shape[2], *shape[3:]))[:, :, ::2]
    same(ours(strided), ours(strided.contiguous()))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("name", "args", "shape"), [c for c in FLAT if c[0] != "RMSNorm"])
def test_without_a_shift(name, args, shape, bias):
    ours, theirs = pair(name, args, bias=bias)
    assert (ours.bias is None) is not bias
    same(ours(values(shape)), theirs(values(shape)))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("momentum", [0.1, 0.7])
def test_instance_norm_with_running_statistics(rank, momentum):
    ours, theirs = pair(f"InstanceNorm{rank}d", (3,), track_running_stats=True, momentum=momentum)
    for step in range(3):
        x = values((4, 3, 5, 2, 3)[: 2 + rank]) * (step + 1) + step
        same(ours(x), theirs(x))
    same(ours.running_mean, theirs.running_mean)
    same(ours.running_var, theirs.running_var)
    x = values((4, 3, 5, 2, 3)[: 2 + rank])
    same(ours.eval()(x), theirs.eval()(x))
    assert int(ours.num_batches_tracked) == 3
    theirs.load_state_dict(ours.state_dict())
    same(ours(x), theirs(x))


def test_instance_norm_averages_all_batches_without_a_momentum():
    layer = layers.InstanceNorm1d(2, momentum=None, track_running_stats=True, dtype=torch.float64)
    batches = torch.randn(5, 4, 2, 6, dtype=torch.float64)
    for batch in batches:
        layer(batch)
    same(layer.running_mean, batches.mean((0, 1, 3)))
    same(layer.running_var, batches.var(-1).mean((0, 1)))


@pytest.mark.parametrize(("name", "args", "shape"), FLAT)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_has_float32_statistics(name, args, shape, dtype):
    ours, theirs = pair(name, args, dtype=dtype)
    x = values(shape, dtype) + 100
    exact = copy.deepcopy(theirs).double()
    if hasattr(exact, "eps") and exact.eps is None:
        exact.eps = torch.finfo(torch.float32).eps
    wanted = exact(x.double())
    y = ours(x)
    assert y.dtype == dtype
    # one rounding to the output's type, and no more
    torch.testing.assert_close(y.double(), wanted, rtol=torch.finfo(dtype).eps / 2 * 1.01, atol=2e-4)


@pytest.mark.parametrize(("name", "args", "shape"), [case for case in FLAT if case[0] != "RMSNorm"])
@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_offsets_cost_no_digits(name, args, shape, offset):
    ours, theirs = pair(name, args, dtype=torch.float32)
    x = values(shape, torch.float32) + offset
    wanted = theirs.double()(x.double())
    torch.testing.assert_close(ours(x).double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "args", "shape"),
    [("GroupNorm", (2, 8), (4, 8, 32, 32)), ("InstanceNorm2d", (8,), (4, 8, 32, 32)), ("LayerNorm", (512,), (64, 512))],
)
def test_offsets_beside_torch(name, args, shape):
    ours, theirs = pair(name, args, dtype=torch.float32)
    x = values(shape, torch.float32) + 1e4
    mine, torchs = ours(x).double(), theirs(x).double()
    wanted = theirs.double()(x.double())
    assert (mine - wanted).abs().max() <= 1e-5
    assert (mine - wanted).abs().max() <= (torchs - wanted).abs().max() + 1e-6


@pytest.mark.parametrize(("name", "args", "shape"), [c for c in FLAT if len(c[2]) > 1 and c[2][0] != 3])
def test_empty_batches(name, args, shape):
    ours, _ = pair(name, args)
    x = torch.empty(0, *shape[1:], dtype=torch.float64, requires_grad=True)
    y = ours(x)
    assert y.shape == x.shape
    y.sum().backward()
    assert all(float(p.grad.abs().sum()) == 0 for p in ours.parameters() if p.grad is not None)


@pytest.mark.parametrize(("name", "args", "shape"), FLAT)
def test_copies_and_pickles(name, args, shape):
    ours, _ = pair(name, args)
    x = values(shape)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(twin(x), ours(x))
        assert type(twin) is type(ours)


@pytest.mark.parametrize(
    ("layer", "shape", "words"),
    [
        (layers.LayerNorm(5), (4, 6), "last axes are"),
        (layers.RMSNorm(5), (4, 6), "last axes are"),
        (layers.GroupNorm(2, 6), (4, 8), "one value for each of the 8 channels"),
        (layers.GroupNorm(3, 6, affine=False), (4, 8), "3 equal groups"),
        (layers.InstanceNorm1d(3), (4, 2, 5), "expected 3 channels"),
        (layers.InstanceNorm1d(3), (4, 3, 1), "more than 1 spatial element"),
        (layers.InstanceNorm2d(3), (4, 3), "expected 3D or 4D"),
        (layers.GroupNorm(2, 6), (6,), "floating values"),
    ],
)
def test_bad_inputs_are_one_line_value_errors(layer, shape, words):
    with pytest.raises(ValueError, match=words) as caught:
        layer(torch.ones(shape))
    assert "\n" not in str(caught.value)


def test_one_value_a_row_is_the_shift():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    layer = layers.GroupNorm(3, 3, dtype=torch.float64)
    nn.init.constant_(layer.bias, 0.25)
    y = layer(x)
    same(y, torch.full_like(y, 0.25))
    (g,) = torch.autograd.grad(y.square().sum(), x)
    same(g, torch.zeros_like(g))
