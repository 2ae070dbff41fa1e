"""Batch norm against torch's in float64, and against itself in float64 where torch loses digits in float32."""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

from normscope import ops
from normscope._errors import UsageError

ULP = torch.finfo(torch.float64).eps


def relative(found, right):
    return ((found.double() - right).abs().max() / right.abs().max()).item()


def run(batch_norm, x, g, w, b, dtype):
    """Return output, gradients of input, weight and bias, and running statistics, computed in ``dtype``."""
    x, w, b = (p.detach().to(dtype).requires_grad_() for p in (x, w, b))
    mean, var = torch.zeros_like(w), torch.ones_like(w)
    y = batch_norm(x, w, b, mean.detach_(), var.detach_())
    return y.detach(), *torch.autograd.grad(y, (x, w, b), g.to(dtype)), mean, var


def ours(x, w, b, mean, var):
    return ops.batch_norm(x, w, b, running_mean=mean, running_var=var)


def torchs(x, w, b, mean, var):
    return F.batch_norm(x, mean, var, w, b, True, 0.1, 1e-5)


def case(layout, offset=0.0):
    x = layout.put(offset + torch.randn(layout.shape))
    channels = layout.shape[1]
    return x, layout.put(torch.randn(layout.shape) + 0.3), torch.randn(channels), torch.randn(channels)


def test_is_torchs_in_float64(layout):
    inputs = case(layout)
    found, right = (run(f, *inputs, torch.float64) for f in (ours, torchs))
    # Torch adds plainly across channels, and so is itself off by the root of the count.
    ulps = 32 * max(1, inputs[0].numel() // layout.shape[1] / 16) ** 0.5
    for part, value in zip(found, right, strict=True):
        assert (part - value).abs().max() < ulps * ULP * max(1.0, value.abs().max())
    assert found[0].stride() == right[0].stride()
    assert found[1].stride() == right[1].stride()


@pytest.mark.parametrize(("offset", "tolerance"), [(0.0, 1e-4), (1e2, 1e-4), (-1e4, 1e-4), (1e4, 1e-4), (1e6, 1e-2)])
def test_an_offset_costs_no_digits(layout, offset, tolerance):
    inputs = case(layout, offset)
    right = run(torchs, *inputs, torch.float64)
    names = ("y", "dx", "dw", "db", "running_mean", "running_var")
    found = run(ours, *inputs, torch.float32)
    errors = {n: relative(f, r) for n, f, r in zip(names, found, right, strict=True)}
    assert max(errors.values()) < tolerance, errors


@pytest.mark.parametrize(("offset", "tolerance"), [(1e4, 1e-4), (1e6, 1e-2)])
def test_torch_fails_the_test_of_offsets(offset, tolerance):
    """The bound above is one that the plain way does not meet."""
    layout = type("L", (), {"shape": (16, 8, 32, 32), "put": lambda x: x.contiguous(memory_format=torch.channels_last)})
    inputs = case(layout, offset)
    right, found = run(torchs, *inputs, torch.float64), run(torchs, *inputs, torch.float32)
    assert relative(found[0], right[0]) > tolerance


def test_a_first_value_far_from_all_others():
    x = torch.randn(4096, 3)
    x[0] = 1e6
    right = run(torchs, x, torch.randn_like(x), torch.ones(3), torch.zeros(3), torch.float64)[0]
    assert relative(ops.batch_norm(x), right) < 1e-4


def test_a_variance_far_below_eps_is_tracked():
    x = 1e-6 * torch.randn(64, 3)
    var = torch.zeros(3)
    ops.batch_norm(x, running_mean=torch.zeros(3), running_var=var, momentum=1.0)
    assert relative(var, x.double().var(0)) < 1e-5


@pytest.mark.parametrize("view", ["strided", "transposed", "expanded"])
def test_any_strides(view):
    x = torch.randn(8, 12, 4, 5, dtype=torch.float64)
    x = {"strided": x[::2, 1::3], "transposed": x.transpose(1, 3), "expanded": x[:, :, :1].expand(8, 12, 6, 5)}[view]
    torch.testing.assert_close(ops.batch_norm(x), F.batch_norm(x, None, None, training=True))


def test_given_statistics_are_torchs(layout):
    x, g, w, b = case(layout)
    mean, var = torch.randn_like(w), torch.rand_like(w) + 0.5

    def found(batch_norm, dtype=torch.float64):
        p = [t.detach().to(dtype).requires_grad_() for t in (x, w, b)]
        y = batch_norm(*p, mean.to(dtype), var.to(dtype))
        return y, *torch.autograd.grad(y, p, g.to(dtype))

    def mine(x, w, b, m, v):
        return ops.batch_norm(x, w, b, running_mean=m, running_var=v, training=False)

    right = found(lambda x, w, b, m, v: F.batch_norm(x, m, v, w, b, False))
    for part, value in zip(found(mine), right, strict=True):
        assert relative(part, value) < 1e-12
    with torch.no_grad():
        assert relative(mine(x, w, b, mean, var), right[0]) < 1e-5


@pytest.mark.parametrize("grad", [True, False])
def test_given_statistics_with_an_offset(grad):
    x = 1e4 + torch.randn(64, 5)
    mean, var = x.mean(0), x.var(0)
    right = F.batch_norm(x.double(), mean.double(), var.double())
    with torch.set_grad_enabled(grad):
        assert relative(ops.batch_norm(x, running_mean=mean, running_var=var, training=False), right) < 1e-6


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("parameters", [torch.float32, None])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype, parameters, training):
    x = (torch.randn(32, 4, 6, 6) + 3).to(dtype).requires_grad_()
    w, b = (torch.randn(4).to(parameters or dtype).requires_grad_() for _ in range(2))
    mean, var = torch.zeros(4), torch.ones(4)
    y = ops.batch_norm(x, w, b, running_mean=mean, running_var=var, training=training)
    assert y.dtype == dtype
    right = F.batch_norm(x.double(), None if training else mean.double(), None if training else var.double(),
                         w.double(), b.double(), training)  # fmt: skip
    torch.testing.assert_close(y, right.to(dtype))
    g = torch.randn_like(x)
    for p, q in zip(*(torch.autograd.grad(v, (x, w, b), g.to(v.dtype)) for v in (y, right)), strict=True):
        assert p.dtype == q.dtype
        assert relative(p, q.double()) < 3 * torch.finfo(dtype).eps
    if training:
        assert relative(var, 0.9 + 0.1 * x.double().var((0, 2, 3))) < 1e-6


def test_autocast_is_torchs():
    linear = torch.nn.Linear(6, 4)
    with torch.autocast("cpu", torch.bfloat16):
        x = linear(torch.randn(32, 6))
        y, right = ops.batch_norm(x, torch.ones(4)), F.batch_norm(x, None, None, torch.ones(4), training=True)
    assert y.dtype == right.dtype == torch.bfloat16
    torch.testing.assert_close(y, right)


def test_an_empty_batch_leaves_the_statistics():
    x = torch.zeros(0, 3, 4, requires_grad=True)
    mean, var = torch.full((3,), 2.0), torch.full((3,), 5.0)
    y = ops.batch_norm(x, torch.ones(3), torch.ones(3), running_mean=mean, running_var=var)
    y.sum().backward()
    assert y.shape == x.shape == x.grad.shape
    assert mean.tolist() == [2.0] * 3
    assert var.tolist() == [5.0] * 3


@pytest.mark.parametrize(
    ("x", "more", "message"),
    [
        (torch.zeros(5), {}, r"channel axis, got shape \(5,\)"),
        (torch.zeros(5, 2, dtype=torch.int64), {}, "floating type"),
        (torch.zeros(1, 3), {}, r"more than 1 value per channel when training, got input size torch.Size\(\[1, 3\]\)"),
        (torch.zeros(1, 3, 1, 1), {}, "more than 1 value per channel"),
        (torch.zeros(4, 3), {"weight": torch.ones(4)}, r"weight should have one value for each of the 3 channels"),
        (torch.zeros(4, 3), {"bias": torch.ones(3, 1)}, "bias should have"),
        (torch.zeros(4, 3), {"running_mean": torch.ones(2)}, "running_mean should have"),
        (torch.zeros(4, 3), {"running_var": torch.ones(2)}, "running_var should have"),
        (torch.zeros(4, 3), {"training": False}, "needed outside training"),
    ],
)
def test_what_cannot_be_normalized_is_said(x, more, message):
    with pytest.raises(UsageError, match=message):
        ops.batch_norm(x, **more)
    with pytest.raises(ValueError):
        ops.batch_norm(x, **more)


def test_one_value_a_channel_is_refused_as_in_torch():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        F.batch_norm(torch.zeros(1, 3, 1), None, None, training=True)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_compiles_whole(backend):
    torch._dynamo.reset()
    mean, var = torch.zeros(3), torch.ones(3)
    compiled = torch.compile(ours, fullgraph=True, backend=backend)
    x, w, b = torch.randn(16, 3, 5, requires_grad=True), torch.randn(3, requires_grad=True), torch.randn(3)
    found = compiled(x, w, b, mean, var)
    mean_, var_ = torch.zeros(3), torch.ones(3)
    right = ours(x, w, b, mean_, var_)
    torch.testing.assert_close(found, right)
    torch.testing.assert_close((mean, var), (mean_, var_))
    grads = (torch.autograd.grad(y.square().sum(), (x, w)) for y in (found, right))
    for g, h in zip(*grads, strict=True):
        torch.testing.assert_close(g, h, rtol=1e-4, atol=1e-5)


# Laws.

sizes = st.tuples(st.integers(2, 9), st.integers(1, 4), st.integers(1, 5))
seeds = st.integers(0, 2**31)


def draw(size, seed):
    generator = torch.Generator().manual_seed(seed)
    x, g = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    w, b = (torch.randn(size[1], generator=generator, dtype=torch.float64) for _ in range(2))
    return x, g, w, b


@settings(deadline=None, max_examples=40)
@given(size=sizes, seed=seeds, shift=st.floats(-1e3, 1e3), scale=st.floats(1e-2, 1e2))
def test_shift_and_positive_scale_do_not_matter(size, seed, shift, scale):
    x, _, w, b = draw(size, seed)
    y = ops.batch_norm(x, w, b, eps=0.0)
    torch.testing.assert_close(ops.batch_norm(shift + scale * x, w, b, eps=0.0), y, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(ops.batch_norm(-x, -w, b, eps=0.0), y)


@settings(deadline=None, max_examples=40)
@given(size=sizes, seed=seeds)
def test_the_order_of_the_batch_does_not_matter(size, seed):
    x, _, w, b = draw(size, seed)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(ops.batch_norm(x[order], w, b), ops.batch_norm(x, w, b)[order])


@settings(deadline=None, max_examples=40)
@given(size=sizes, seed=seeds)
def test_the_gradient_is_orthogonal_to_one_and_to_the_output(size, seed):
    x, g, w, b = draw(size, seed)
    xhat, rstd = ops.standardize(x, (0, 2), 0.0)
    x.requires_grad_()
    (dx,) = torch.autograd.grad(ops.batch_norm(x, w, b, eps=0.0), x, g)
    size_of_terms = (rstd * w.view(-1, 1) * g).abs().sum((0, 2))
    assert (dx.sum((0, 2)).abs() / size_of_terms).max() < 1e-12
    assert ((dx * xhat).sum((0, 2)).abs() / size_of_terms).max() < 1e-11


@settings(deadline=None, max_examples=25)
@given(size=sizes, seed=seeds)
def test_the_output_has_the_bias_as_mean_and_the_weight_as_spread(size, seed):
    x, _, w, b = draw(size, seed)
    y = ops.batch_norm(x, w, b, eps=0.0)
    torch.testing.assert_close(y.mean((0, 2)), b)
    torch.testing.assert_close(y.var((0, 2), correction=0).sqrt(), w.abs())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(4096, 8), (16, 8, 24, 24)])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_a_running_mean_is_right_to_some_roundings(dtype, shape, offset):
    """Where the kernel adds plainly, side by side in memory, the noise of its sums is kept out."""
    x = (offset + torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)
    if x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    mean, var = torch.zeros(8), torch.ones(8)
    ops.batch_norm(x, running_mean=mean, running_var=var, momentum=1.0)
    axes = (0, *range(2, x.ndim))
    right = x.double().mean(axes)
    assert (mean - right).abs().max() < 12 * torch.finfo(torch.float32).eps * right.abs().max()
    if dtype != torch.float32:
        torch.testing.assert_close(var.double(), x.double().var(axes), rtol=1e-6, atol=0)


@pytest.mark.parametrize("way", ["torch", "written_out", None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_batch_is_counted_once_whichever_way_it_is_computed(way, dtype):
    x, mean, var, seen = torch.randn(8, 3, 5).to(dtype), torch.zeros(3), torch.ones(3), torch.tensor(6)
    for training, expected in ((True, 7), (True, 8), (False, 8)):
        with nullcontext() if way is None else ops.using(way):
            ops.batch_norm(
                x, running_mean=mean, running_var=var, momentum=0.5, training=training, num_batches_tracked=seen
            )
        assert seen.item() == expected
