"""The GPU kernels against the definition in float64: compiled where there is a GPU, else under Triton's interpreter."""

import os
import sys

import gpu_oracle
import pytest
import torch
from gpu_oracle import DEVICE, EPS, INTERPRETED, LEAKY, NONE, RELU, Case, errors, leaves, make, reference
from hypothesis import Phase, given, settings, strategies as st

from normscope.kernels import gpu
from normscope.kernels.gpu import _plan  # white box: limits of other devices choose other kernels

pytest.importorskip("triton", reason="Triton is not installed")
if INTERPRETED and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("Triton was imported before without its interpreter: see test_gpu_apart.py", allow_module_level=True)

pytestmark = pytest.mark.extras

FUSED = _plan.Limits()
# Tiles so small, and programs so few, that a handful of values has several of each.
SPLIT = _plan.Limits(tile_bytes=256, fused=0, processors=1, resident=6)
LAYOUTS = {
    "planes": {"shape": (6, 3, 5, 7)},
    "channels_last": {"shape": (5, 11, 3, 4), "last": True},
    "2d": {"shape": (37, 5)},
}
# In half units of float32: of the channel's largest output, of a times the gradient's largest, of the sums of sizes.
MOST = {"y": 6.0, "dx": 8.0, "dweight": 6.0, "dbias": 4.0, "dresidual": 0.5}


@pytest.fixture(params=["fused", "split"])
def limits(request, monkeypatch):
    monkeypatch.setattr(_plan, "LIMITS", FUSED if request.param == "fused" else SPLIT)
    return request.param


def check(case, most=MOST):
    y, saved = case.forward(gpu)
    gradients = case.backward(gpu, saved)
    assert y.dtype == case.x.dtype
    assert y.stride() == case.x.stride()
    assert saved.shape == (3, case.x.shape[1])
    assert saved.dtype == torch.float32
    for got, like, narrow in zip(gradients, leaves(case), (True, False, False, True), strict=True):
        assert (got is None) == (like is None)
        if got is not None:
            assert got.dtype == (like.dtype if narrow else torch.float32)
    compare(errors(case, y, gradients), most)
    return y, saved, gradients


def compare(found, most=MOST):
    for (name, bound), error in zip(most.items(), found, strict=True):
        assert error <= bound, f"{name} off by {error:.3g}, more than {bound}"


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4, 1e6])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_offset_costs_no_digits(layout, offset, limits):
    case = make(**LAYOUTS[layout], offset=offset)
    assert _plan.plan(case.x).fused == (limits == "fused")
    _, saved, _ = check(case)
    _, _, mean, var = reference(case, case.x)
    # The high part alone is the mean to its own precision; with the low part it is the mean to that of the deviations.
    assert bool(((saved[0] - mean).abs() <= mean.abs() * 2**-24 + 1e-7).all())
    assert bool(((saved[0].double() + saved[1] - mean).abs() <= 1e-6 * var.sqrt()).all())
    torch.testing.assert_close(saved[2].double(), (var + EPS).rsqrt(), rtol=3e-7, atol=0)


SHAPES = st.one_of(
    st.tuples(st.integers(2, 40), st.integers(1, 70)),
    st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(2, 40)),
    st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(2, 9), st.integers(1, 9)),
    st.tuples(st.integers(2, 5), st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)),
)


@given(
    shape=SHAPES,
    last=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    parameters=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    activation=st.sampled_from([NONE, RELU, LEAKY]),
    residual=st.booleans(),
    weight=st.booleans(),
    bias=st.booleans(),
    offset=st.sampled_from([0.0, -30.0, 1e4]),
    limits=st.sampled_from([FUSED, SPLIT]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30 if INTERPRETED else 200, deadline=None, phases=[Phase.generate])  # shrinking takes minutes
def test_any_shape_layout_type_and_option(limits, **options):
    if options["dtype"] == torch.float16:
        # Its grid is so coarse there that values are at the mean but for rounding, and outputs of 1e-8 are stored as 0:
        # from those the reference cannot see which side of the activation was taken.
        options["offset"] = 0.0
    before, _plan.LIMITS = _plan.LIMITS, limits
    try:
        check(make(**options))
    finally:
        _plan.LIMITS = before


def test_a_gradient_that_is_large_where_the_value_is_at_the_mean_is_exact_to_the_means_rounding(limits):
    case = make((5, 59), last=False, bias=False, activation=NONE, seed=253)
    check(case)


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_an_offset_costs_no_digits_without_a_shift_either(offset, limits):
    check(make((6, 3, 5, 7), offset=offset, weight=False, bias=False, residual=False, activation=NONE))


@pytest.mark.parametrize("channels", [1, 300])
def test_one_channel_and_many(channels, limits):
    check(make((3, channels)))
    check(make((2, 1, 3, 3), last=True))


def test_layouts_that_differ_are_brought_together():
    case = make((4, 3, 6, 5), last=True)
    plain = make((4, 3, 6, 5))
    case.residual, case.g = plain.residual, plain.g[:1].expand(4, 3, 6, 5)
    check(case)
    across = Case(plain.x.transpose(2, 3), plain.weight, plain.bias, RELU, None, plain.g.transpose(2, 3))
    y, saved = across.forward(gpu)
    compare(errors(across, y, across.backward(gpu, saved)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_mask_is_rebuilt_to_the_bit(layout, limits):
    """Shifted so that a fifth of the values is at zero but for rounding, each output above it passes its gradient."""
    case = make(**LAYOUTS[layout], activation=RELU, residual=True)
    case.x.copy_((case.x * 2).round().clamp(-2, 2) + 100)
    case.residual.mul_(1e-7).round(decimals=7)
    axes = (0, *range(2, case.x.ndim))
    xhat = (101 - case.x.double().mean(axes)) / (case.x.double().var(axes, correction=0) + EPS).sqrt()
    case.bias.copy_(-case.weight.double() * xhat)
    case.g.fill_(1)
    y, saved = case.forward(gpu)
    assert bool(((case.x == 101) & (y > 0)).any())
    assert bool(((case.x == 101) & (y == 0)).any())
    passes = case.backward(gpu, saved)[3]
    assert passes.equal((y > 0).float())


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy's word on inf - inf
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", ["planes", "channels_last"])
def test_a_value_that_is_not_finite_stays_in_its_channel(layout, bad, limits):
    case = make(**LAYOUTS[layout])
    running = torch.zeros(2, case.x.shape[1], device=DEVICE).unbind()
    clean = [*case.forward(gpu), *case.backward(gpu, case.forward(gpu)[1])]
    case.x[2, 1, 1, 2] = bad
    y, saved = case.forward(gpu, (*running, 0.1))
    found = [y, saved, *case.backward(gpu, saved)]
    for got, was, axis in zip(found, clean, (1, 1, 1, 0, 0, 1), strict=True):
        sick, well = got.select(axis, 1), [c for c in range(got.shape[axis]) if c != 1]
        of_well = torch.tensor(well, device=DEVICE)
        assert got.index_select(axis, of_well).equal(was.index_select(axis, of_well))
        if got is y or got is found[2]:
            assert bool(sick.isnan().all())
    assert bool(running[1][1].isnan())
    assert bool(torch.stack(running)[:, 2:].isfinite().all())


@pytest.mark.parametrize("activation", [RELU, LEAKY])
def test_nan_passes_the_activation_as_in_torch(activation, limits):
    case = make(**LAYOUTS["planes"], activation=activation)
    case.residual[1, 2, 3, 4] = float("nan")
    y, saved = case.forward(gpu)
    assert y.isnan().nonzero().tolist() == [[1, 2, 3, 4]]
    through = torch.zeros(1, requires_grad=True)
    act = torch.nn.functional.leaky_relu(through * float("nan"), gpu_oracle.SLOPE if activation == LEAKY else 0.0)
    passes = torch.relu(through + float("nan")) if activation == RELU else act
    assert bool(passes.isnan())
    gradients = case.backward(gpu, saved)
    slope = gpu_oracle.SLOPE if activation == LEAKY else 1.0
    torch.testing.assert_close(gradients[3][1, 2, 3, 4], case.g[1, 2, 3, 4] * slope)
    assert all(bool(t.isfinite().all()) for t in gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_running_statistics_move_as_torch_moves_them(layout, dtype, limits):
    case = make(**LAYOUTS[layout], offset=3.0)
    channels = case.x.shape[1]
    mean, var = (torch.randn(channels, device=DEVICE).to(dtype) for _ in range(2))
    want = mean.double(), var.double()
    case.forward(gpu, (mean, var, 0.3))
    torch.nn.functional.batch_norm(case.x.double(), *want, training=True, momentum=0.3)
    bound = 4e-7 if dtype != torch.bfloat16 else 2**-7
    for got, expected in zip((mean, var), want, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_bits_on_every_run(layout, limits):
    case = make(**LAYOUTS[layout], dtype=torch.bfloat16, offset=10.0)
    runs = []
    for _ in range(2):
        y, saved = case.forward(gpu)
        runs.append([y, saved, *case.backward(gpu, saved)])
    for one, other in zip(*runs, strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("activation", [NONE, RELU])
def test_what_is_not_wanted_is_none_and_changes_nothing(activation, limits):
    case = make(**LAYOUTS["2d"], activation=activation)
    _, saved = case.forward(gpu)
    all_of_them = case.backward(gpu, saved)
    for wanted in [(True, False, False, False), (False, True, False, False), (False, False, True, True), (False,) * 4]:
        for got, was, want in zip(case.backward(gpu, saved, wanted), all_of_them, wanted, strict=True):
            assert got.equal(was) if want else got is None


def test_a_channel_without_variance_is_its_bias(limits):
    case = make((7, 3, 4, 3), activation=NONE, residual=False)
    case.x.fill_(1e6 / 3)
    y, saved = case.forward(gpu)
    assert y.equal(case.bias.view(1, 3, 1, 1).expand_as(y))
    assert saved[1].equal(torch.zeros_like(saved[1]))
    torch.testing.assert_close(saved[2], torch.full_like(saved[2], EPS**-0.5))


def test_a_first_tile_far_from_the_rest_costs_few_digits(monkeypatch):
    monkeypatch.setattr(_plan, "LIMITS", SPLIT)
    case = make((96, 4), activation=NONE)
    case.x[:8] += 1e4
    check(case, {**MOST, "y": 60.0, "dx": 60.0, "dweight": 60.0})


PLANTED = {
    "forward without the shift": (0, lambda c, x: c - x.bias.view(1, -1, 1, 1)),
    "backward without the mean's term": (1, lambda d, x: d + _scale(x) * _mean(x, x.g)),
    "backward with the variance's term turned round": (1, lambda d, x: d + 2 * _scale(x) * _slant(x)),
    "gain's gradient by n - 1": (2, lambda d, x: d * 1.001),
    "shift's gradient of one sample short": (3, lambda d, x: d - x.g[0].sum((1, 2))),
    "residual's gradient past the activation": (4, lambda d, x: x.g),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_the_oracle_sees_a_planted_fault(fault):
    case = make(**LAYOUTS["planes"], activation=RELU if "activation" in fault else NONE)
    y, saved = case.forward(gpu)
    found = [y, *case.backward(gpu, saved)]
    compare(errors(case, found[0], found[1:]))
    at, spoil = PLANTED[fault]
    found[at] = spoil(found[at], case)
    with pytest.raises(AssertionError, match="off by"):
        compare(errors(case, found[0], found[1:]))


def _mean(case, t):
    return t.mean((0, 2, 3), keepdim=True)


def _scale(case):
    return (case.weight / (case.x.var((0, 2, 3), correction=0) + EPS).sqrt()).view(1, -1, 1, 1)


def _slant(case):
    xhat = torch.nn.functional.batch_norm(case.x, None, None, training=True, eps=EPS)
    return xhat * _mean(case, case.g * xhat)


@pytest.mark.skipif(not INTERPRETED, reason="lays sparse memory out on the CPU")
def test_offsets_beyond_31_bits():
    """Two rows of a channel that lie 2**31 elements apart; what is between them is never touched."""
    from normscope.kernels.gpu import _forward  # white box: one kernel alone, on memory too large for a layer

    far = 2**31
    try:
        x = torch.empty(far + 8, dtype=torch.float16)
    except RuntimeError:
        pytest.skip("the machine does not lend 4 GiB of memory that is not used")
    x[:8], x[far:] = torch.arange(8), 10 + torch.arange(8)
    blocks = {"PLANES": True, "LANES": 8, "ALIGN": 8}
    for rows, wide in ((1, False), (2, True)):
        partial = torch.empty(4, 1, 1)
        sizes = 1, 1, 2, 1, far // 8, 1, 2 // rows, 2 // rows
        _forward.partial_moments[(1,)](x, partial, *sizes, ROWS=rows, WIDE=wide, **blocks)
        shift, low, m2, count = partial.flatten().tolist()
        assert count == 16
        assert shift + low == pytest.approx(8.5)
        assert m2 == pytest.approx(16 * (25 + 5.25))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")
def test_torch_compile_works_beside_triton():
    assert "triton" in sys.modules
    x = torch.randn(5, 3, device=DEVICE)
    torch.testing.assert_close(torch.compile(lambda t: (t * 2).relu().sum(0))(x), (x * 2).relu().sum(0))
