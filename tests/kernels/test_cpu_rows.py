"""Layer, RMS, group and instance norm by the CPU kernel, held to their formula in float64, in every build."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from normscope import layers, ops
from normscope.kernels import cpu

pytestmark = pytest.mark.skipif(bool(cpu.why_not()) or not cpu.takes_rows(), reason=cpu.why_not() or "older build")

EPS = 1e-5
TYPES = {torch.float32: 3e-6, torch.bfloat16: 3e-6, torch.float64: 1e-13}


def normalized(kind, x, w, b, groups):
    """The formula, one row at a time; gains of columns, or of channels where there are groups."""
    rows = x.reshape(x.shape[0] * groups, -1) if groups else x
    mean = 0 if kind == "rms" else rows.mean(1, keepdim=True)
    xhat = (rows - mean) / ((rows - mean).square().mean(1, keepdim=True) + EPS).sqrt()
    by = (-1, *(1,) * (x.ndim - 2)) if groups else (-1,)
    return xhat.view(x.shape) * w.view(by) + b.view(by) * (kind != "rms")


def by_kernel(kind, x, w, b, groups):
    if kind == "rms":
        return ops.rms_norm(x, x.shape[1:], w, EPS) + 0 * b.to(x.dtype)
    if groups:
        return ops.group_norm(x, groups, w, b, EPS)
    return ops.layer_norm(x, x.shape[1:], w, b, EPS)


def drawn(shape, dtype, offset=0.0, seed=0):
    source = torch.Generator().manual_seed(seed)
    x = (torch.randn(shape, generator=source, dtype=torch.float64) * 1.7 + offset).to(dtype)
    g = (torch.randn(shape, generator=source, dtype=torch.float64) + 0.3).to(dtype)
    w, b = torch.randn(2, shape[1], generator=source, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32))
    return x, w, b, g


def with_gradients(function, kind, x, w, b, g, groups):
    x, w, b = (t.detach().requires_grad_() for t in (x, w, b))
    y = function(kind, x, w, b, groups)
    return y.detach(), *torch.autograd.grad(y, (x, w, b), g)


def errors(kind, x, w, b, g, groups):
    """Errors beyond what rounding to the type takes, in shares of the largest value."""
    found = with_gradients(by_kernel, kind, x, w, b, g, groups)
    right = with_gradients(normalized, kind, *(t.double() for t in (x, w, b, g)), groups)
    worst = 0.0
    for one, other in zip(found, right, strict=True):
        rounding = torch.finfo(one.dtype).eps / 2 * other.abs() if one.dtype == torch.bfloat16 else 0
        off = ((one.double() - other).abs() - rounding).clamp(min=0).max() / max(other.abs().max(), 1e-3)
        worst = max(worst, off.item())
    return worst


CASES = [
    ("layer", (7, 5), 0), ("layer", (3, 4), 0), ("layer", (300, 64), 0), ("layer", (70, 129), 0),
    ("layer", (5, 3000), 0), ("rms", (7, 5), 0), ("rms", (300, 71), 0), ("rms", (5, 2048), 0),
    ("group", (6, 4, 3), 2), ("group", (200, 6), 3), ("group", (5, 6, 7, 9), 3), ("group", (2, 4, 40, 40), 1),
    ("group", (3, 4, 1500), 4), ("group", (40, 12, 2), 6),
]  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("kind", "shape", "groups"), CASES)
def test_is_the_formula_with_its_gradients(build, kind, shape, groups, dtype):
    x, w, b, g = drawn(shape, dtype)
    assert errors(kind, x, w, b, g, groups) < TYPES[dtype]


@pytest.mark.parametrize("offset", [30.0, 1e4, -1e6])
@pytest.mark.parametrize(("kind", "shape", "groups"), [CASES[2], CASES[4], CASES[10], CASES[11]])
def test_an_offset_costs_no_digits(build, kind, shape, groups, offset):
    x, w, b, g = drawn(shape, torch.float32, offset)
    assert errors(kind, x, w, b, g, groups) < 5e-6


def test_a_first_value_far_from_the_others_and_equal_values(build):
    x, w, b, g = drawn((4, 3000), torch.float32)
    x[:2, 0] = 1e5
    x[2] = 7.3
    found = with_gradients(by_kernel, "layer", x, w, b, g, 0)
    right = with_gradients(normalized, "layer", *(t.double() for t in (x, w, b, g)), 0)
    for one, other in zip(found, right, strict=True):
        off = (one.double() - other).abs().flatten() / other.abs().max()
        assert off.max() < 1e-5
    assert torch.equal(found[0][2], b)


def test_one_value_a_row_is_the_shift(build):
    x, w, b, g = drawn((9, 1), torch.float32)
    y, g_x, g_weight, g_bias = with_gradients(by_kernel, "layer", x, w, b, g, 0)
    assert torch.equal(y, b.expand(9, 1))
    assert g_x.abs().max() < 4 * torch.finfo(torch.float32).eps * EPS**-0.5 * (w * g).abs().max()
    assert float(g_weight) == 0
    torch.testing.assert_close(g_bias, g.sum(0))


def test_squares_beyond_float32_have_a_root(build):
    x, w, b, _ = drawn((3, 100), torch.float32)
    x *= 1e25
    y = ops.rms_norm(x, (100,), w, EPS)
    torch.testing.assert_close(y, normalized("rms", x.double(), w.double(), b.double(), 0).float())


@settings(deadline=None, max_examples=25)
@given(rows=st.integers(1, 80), size=st.integers(1, 150), seed=st.integers(0, 2**31))
def test_no_size_loses_or_doubles_a_value(rows, size, seed):
    """Sums over the rows of a column are exact for small whole numbers."""
    source = torch.Generator().manual_seed(seed)
    g = torch.randint(-8, 9, (rows, size), generator=source).float()
    x = torch.randn(rows, size, generator=source)
    w, b = torch.ones(size, requires_grad=True), torch.zeros(size, requires_grad=True)
    torch.autograd.backward(ops.layer_norm(x, (size,), w, b), g)
    assert torch.equal(b.grad, g.sum(0))
    channel = torch.zeros(rows, requires_grad=True)
    if size > 1:
        torch.autograd.backward(ops.group_norm(x[None], rows, None, channel), g[None])
        assert torch.equal(channel.grad, g.sum(1))


@pytest.mark.parametrize(("kind", "shape", "groups"), [("layer", (900, 96), 0), ("group", (40, 6, 500), 3)])
def test_no_bit_depends_on_the_number_of_threads(build, kind, shape, groups):
    x, w, b, g = drawn(shape, torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(with_gradients(by_kernel, kind, x, w, b, g, groups))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


@pytest.mark.parametrize(("kind", "shape", "groups"), [("layer", (9, 33), 0), ("group", (5, 6, 7), 2)])
def test_what_is_not_wanted_is_not_computed_and_odd_cotangents_are_taken(kind, shape, groups):
    x, w, b, g = drawn(shape, torch.float32)
    whole = with_gradients(by_kernel, kind, x, w, b, g, groups)[1:]
    for needs in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 1, 0)]:
        ts = [t.clone().requires_grad_(bool(n)) for t, n in zip((x, w, b), needs, strict=True)]
        by_kernel(kind, *ts, groups).backward(g)
        for t, n, right in zip(ts, needs, whole, strict=True):
            assert (t.grad is not None) == bool(n)
            assert not n or torch.equal(t.grad, right)
    x = x.requires_grad_()
    y = by_kernel(kind, x, w, b, groups)
    turned = torch.randn(shape[::-1]).permute(*range(len(shape))[::-1])
    one, other = (torch.autograd.grad(y, x, t, retain_graph=True)[0] for t in (turned, turned.contiguous()))
    assert torch.equal(one, other)
    ones = torch.ones(()).expand(shape)
    one, other = (torch.autograd.grad(y, x, t, retain_graph=True)[0] for t in (ones, ones.contiguous()))
    assert torch.equal(one, other)


def test_parameters_of_another_type_have_gradients_of_theirs():
    x, w, b, g = drawn((50, 40), torch.bfloat16)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        w, b = (t.detach().to(dtype).requires_grad_() for t in (w, b))
        y = ops.layer_norm(x, (40,), w, b)
        assert y.dtype == torch.bfloat16
        assert {t.dtype for t in torch.autograd.grad(y, (w, b), g)} == {dtype}


def turned_back(t):
    return t.mT if t.ndim == 2 else t


def test_a_graph_that_is_kept_and_hooks_on_saved_tensors_are_served():
    x, w, b, g = drawn((20, 30), torch.float32)
    x.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.mT.clone() if t.ndim == 2 else t, turned_back):
        y = ops.layer_norm(x, (30,), w, b)
    first, second = (torch.autograd.grad(y, x, g, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, with_gradients(by_kernel, "layer", x, w, b, g, 0)[1])
    assert torch.equal(first, second)


def test_sizes_that_do_not_fit_are_refused_at_the_door():
    module, x = cpu.build("_baseline"), torch.ones(4, 6)
    y, saved = torch.empty_like(x), torch.empty(6, 4)
    for rows, groups, span in ((0, 1, 1), (4, 0, 1), (4, 1, 4)):
        with pytest.raises(ValueError, match="a size does not fit"):
            module.rows_forward(x, rows, 6, groups, span, True, EPS, 1, y, saved, None, None)
    with pytest.raises(ValueError, match="a tensor does not fit"):
        module.rows_forward(x, 4, 6, 1, 1, True, EPS, 1, y.double(), saved, None, None)
    with pytest.raises(ValueError, match="the input does not fit"):
        module.rows_forward(x.long(), 4, 6, 1, 1, True, EPS, 1, y, saved, None, None)
    with pytest.raises(TypeError, match="expected 14 arguments"):
        module.rows_backward(x)


def test_without_the_kernel_torchs_way_gives_the_same(monkeypatch):
    x, *_ = drawn((20, 6, 30), torch.float32)
    norms = [layers.LayerNorm(30), layers.RMSNorm(30), layers.GroupNorm(3, 6), layers.InstanceNorm1d(6, affine=True)]
    ours = [norm(x) for norm in norms]
    with ops.using("torch"):
        asked = [norm(x) for norm in norms]
    assert ops.kernel_of_rows() == cpu.about()["isa"]
    monkeypatch.setattr(cpu, "takes_rows", lambda: False)
    assert ops.kernel_of_rows() == "built from older sources"
    theirs = [norm(x) for norm in norms]
    torch.testing.assert_close(ours, theirs)
    assert all(torch.equal(one, other) for one, other in zip(asked, theirs, strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
