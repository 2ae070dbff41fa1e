"""The CPU kernel against float64 and autograd, in every build that this machine runs."""

import pytest
import torch
from cpu_oracles import EPS, LAYOUTS, by_kernel, draw, errors, far_from_kinks, off_the_kinks, written_out
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from normscope import ops
from normscope.kernels import cpu

pytestmark = pytest.mark.skipif(bool(cpu.why_not()), reason=cpu.why_not() or "runs")

SHAPES = [
    (128, 64),
    (7, 5),
    (19, 1),
    (8, 3, 32, 32),
    (6, 40, 7, 7),
    (4, 33, 4, 4),
    (3, 17, 9, 9),
    (2, 3, 90, 90),
    (5, 1, 3),
]
LIMITS = {torch.float32: 3e-6, torch.bfloat16: 1.2e-2, torch.float64: 4e-14}


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_build_layout_and_activation_is_the_formula(build, shape, dtype):
    for layout in LAYOUTS:
        for activation in (None, "relu", "leaky_relu"):
            x, w, b, g = draw(shape, dtype, layout=layout)
            found, right = by_kernel(x, w, b, g, activation), written_out(x, w, b, g, activation)
            assert found[0].stride() == x.stride() or layout == "strided"
            found, right = off_the_kinks(found, right, x, w, b, activation)
            assert max(errors(found, right)) < LIMITS[dtype], (layout, activation, errors(found, right))


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("offset", "limit"), [(1e2, 3e-6), (1e4, 3e-6), (1e6, 3e-6), (-1e6, 3e-6)])
def test_a_large_mean_costs_no_digits(build, offset, limit, layout):
    """Against the formula of the very values in memory: what rounding to float32 took from them is not the kernel's."""
    for shape in [(16, 6, 12, 12), (64, 9, 3, 3), (500, 20)]:
        x, w, b, g = draw(shape, offset=offset, layout=layout)
        assert max(errors(by_kernel(x, w, b, g, None), written_out(x, w, b, g, None))) < limit


def test_the_oracle_sees_a_wrong_sign_and_a_missing_term():
    x, w, b, g = draw((8, 3, 6, 6))
    right = written_out(x, w, b, g, "relu")
    y, dx, dw, db = by_kernel(x, w, b, g, "relu")
    without_means = (g * (y > 0)).double() * (w / (x.var((0, 2, 3), correction=0) + EPS).sqrt()).view(-1, 1, 1)
    for wrong in [
        (y, -dx, dw, db),
        (y, without_means, dw, db),
        (y, dx, -dw, db),
        (y, dx, dw, 0.9 * db),
        (-y, dx, dw, db),
    ]:
        assert max(errors(wrong, right)) > 0.05


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_odd_shapes_strides_and_scales(data):
    dims = data.draw(st.integers(0, 3))
    shape = (
        data.draw(st.integers(1, 70)),
        data.draw(st.integers(1, 70)),
        *(data.draw(st.integers(1, 11)) for _ in range(dims)),
    )
    if shape[0] * int(torch.tensor(shape[2:]).prod()) < 2:
        shape = (2, *shape[1:])
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    layout = data.draw(st.sampled_from(LAYOUTS))
    activation = data.draw(st.sampled_from([None, "relu", "leaky_relu"]))
    offset = data.draw(st.sampled_from([0.0, 3.0, 1e3]))
    x, w, b, g = draw(shape, dtype, offset, layout, data.draw(st.integers(0, 99)))
    if activation is not None:  # of millions of values one is at a kink, and in the sums over a channel it is seen
        g.mul_(far_from_kinks(x, w, b))
    found, right = by_kernel(x, w, b, g, activation), written_out(x, w, b, g, activation)
    n = x.numel() // shape[1]
    # Two values a channel: the gradient is what is left of terms that cancel. And the float64 that is compared with
    # takes the mean off as it is, which an offset makes inexact.
    slack = (30 if n < 8 else 1) * (1 + offset if dtype == torch.float64 else 1)
    for one, other in zip(found, right, strict=True):
        size = max(float(other.abs().max()), 0.05 * float(g.abs().max()))
        assert float((one.double() - other).abs().max()) / size < 10 * slack * LIMITS[dtype]


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_in_its_channel_and_comes_out_as_torch_has_it(build, value, place):
    for shape in [(8, 5, 10, 10), (6, 20, 3, 3), (40, 20)]:
        for layout in ("contiguous", "channels_last"):
            x, w, b, g = draw(shape, layout=layout)
            clean = by_kernel(x, w, b, g, "relu")
            flat = x.movedim(1, 0)
            at = {"first": (0, *[0] * (x.ndim - 2)), "middle": (shape[0] // 2, *[1] * (x.ndim - 2))}
            where = at.get(place, tuple(s - 1 for s in (shape[0], *shape[2:])))
            flat[(3, *where)] = value
            running = torch.zeros(shape[1]), torch.ones(shape[1])
            y, dx, dw, _ = by_kernel(x, w, b, g, "relu", running=running)
            others = [c for c in range(shape[1]) if c != 3]
            for one, other in zip((y, dx), clean[:2], strict=True):
                torch.testing.assert_close(one[:, others], other[:, others], rtol=0, atol=0)
            torch.testing.assert_close(dw[others], clean[2][others], rtol=0, atol=0)
            mean, var = torch.zeros(shape[1]), torch.ones(shape[1])
            theirs = F.relu(F.batch_norm(x, mean, var, w, b, True, 0.1, EPS))
            assert torch.equal(y[:, 3].isnan(), theirs[:, 3].isnan())
            assert torch.equal(running[0].isfinite(), mean.isfinite())
            assert torch.equal(running[1].isfinite(), var.isfinite())


def test_values_that_float32_cannot_square_or_that_jump_after_the_first(build):
    for shape in [(32, 3, 10, 10), (40, 8)]:
        x, w, b, g = draw(shape)
        for case in (
            x * 1e22,
            x * 1e-22,
            torch.where(torch.arange(shape[0]).view(-1, *[1] * (x.ndim - 1)) < 20, 7.0, x * 1e-3),
        ):
            y = by_kernel(case, w, b, g, None)[0]
            assert errors([y], written_out(case, w, b, g, None)[:1])[0] < 1e-5


def test_a_constant_channel_is_its_bias(build):
    for value in (0.0, 3.7, 1e6):
        x, w, b, g = draw((16, 4, 5, 5))
        x[:, 1] = value
        y, dx, dw, _ = by_kernel(x, w, b, g, None)
        torch.testing.assert_close(y[:, 1], b[1].expand_as(y[:, 1]), rtol=0, atol=0)
        assert dx[:, 1].isfinite().all()
        assert dw[1] == 0


def test_running_statistics_are_torchs(build):
    for shape in [(16, 7, 6, 6), (50, 12), (4, 3, 80, 80)]:
        for kept in (torch.float32, torch.float64, torch.bfloat16):
            x, w, b, g = draw(shape, offset=2.0)
            ours = torch.full((shape[1],), 0.3, dtype=kept), torch.full((shape[1],), 2.0, dtype=kept)
            version = ours[0]._version
            by_kernel(x, w, b, g, None, running=ours)
            assert ours[0]._version > version
            mean, var = x.double().mean((0, *range(2, x.ndim))), x.double().var((0, *range(2, x.ndim)))
            right = (0.9 * ours[0].new_full((1,), 0.3).double() + 0.1 * mean, 0.9 * 2.0 + 0.1 * var)
            for one, other in zip(ours, right, strict=True):
                torch.testing.assert_close(
                    one, other.to(kept), rtol=1e-2 if kept == torch.bfloat16 else 1e-6, atol=1e-7
                )


def test_the_same_bits_again_and_on_any_number_of_threads(build):
    before = torch.get_num_threads()
    try:
        for shape in [(128, 20, 16, 16), (2, 3, 200, 200), (64, 300, 4, 4), (3000, 70), (9, 1, 90, 91)]:
            for layout in ("contiguous", "channels_last"):
                x, w, b, g = draw(shape, layout=layout)
                results = []
                for threads in (1, 2, 2, 5):
                    torch.set_num_threads(threads)
                    results.append(by_kernel(x, w, b, g, "relu"))
                for other in results[1:]:
                    assert all(torch.equal(one, again) for one, again in zip(results[0], other, strict=True))
    finally:
        torch.set_num_threads(before)


def test_the_mask_of_the_backward_is_that_of_the_forward(build):
    """Bit for bit: where the output is zero no cotangent passes, where it is not it does."""
    for shape, layout in [
        ((64, 8, 16, 16), "contiguous"),
        ((64, 8, 16, 16), "channels_last"),
        ((512, 40), "contiguous"),
    ]:
        x, w, b, _ = draw(shape, layout=layout)
        x.requires_grad_()
        for way in ("kernel",):
            with ops.using(way):
                y = ops.batch_norm(x, w, b.requires_grad_(), activation="relu")
            (db,) = torch.autograd.grad(y, b, torch.ones_like(y))
            assert torch.equal(db, (y > 0).sum((0, *range(2, x.ndim))).to(db.dtype))


@pytest.mark.parametrize("activation", [None, "leaky_relu"])
def test_in_place_takes_everything_back_from_the_output(build, activation):
    for shape, layout in [
        ((16, 6, 12, 12), "contiguous"),
        ((16, 6, 12, 12), "channels_last"),
        ((64, 30), "contiguous"),
    ]:
        x, w, b, g = draw(shape, layout=layout, offset=5.0)
        b.clamp_(-1, 1)
        right = written_out(x, w, b, g, activation)
        leaf, w, b = (t.clone().requires_grad_() for t in (x, w, b))
        inside = leaf * 1
        at = inside.data_ptr()
        y, _ = ops.batch_norm_in_place(inside, w, b, EPS, 0.2 if activation else 1.0)
        assert y.data_ptr() == at
        found = (y.detach().clone(), *torch.autograd.grad(y, (leaf, w, b), g))
        found, right = off_the_kinks(found, right, x, w, b, activation)
        assert max(errors(found, right)) < 5e-6


@pytest.mark.parametrize("shape", [(4, 50, 100), (2, 70, 16), (6, 193), (3, 5, 7, 4)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_bfloat16_is_rounded_to_nearest_even_in_every_lane(shape, layout, build):
    """Values of 1 and -1 have mean 0 and deviation 1: with gain 0 the output is the shift, whatever bits that has."""
    if layout == "channels_last" and len(shape) != 4:
        shape = (shape[0] * 2, shape[1], 5, 3)
    half = torch.ones(shape[0] // 2 or 1, *shape[1:], dtype=torch.bfloat16)
    x = torch.cat([half, -half])
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    dice = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (shape[1],), generator=dice).to(torch.int32)
    bits[1::4] = (bits[1::4] & ~0xFFFF) | 0x8000  # exactly between two neighbours
    special = [0x7FFFFFFF, -1, 0x7F800001, 0x7F7FFFFF, 0x7F800000, -0x800000, 1, 0x8000, 0x7FFF, -0x80000000]
    bits[: min(len(special), shape[1])] = torch.tensor(special, dtype=torch.int32)[: shape[1]]
    shift = bits.view(torch.float32)
    plan = cpu.plan(x, torch.zeros(shape[1]), shift)
    y = plan.forward(x, False, None, 1, 0, 0.0, 0.0, 0.0)
    expected = shift.bfloat16().view(1, -1, *[1] * (x.ndim - 2)).expand_as(y)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7, 200), (5, 40, 3, 3), (3, 9, 11, 13)])
def test_equal_values_are_their_own_mean_and_leave_the_shift(shape, dtype, build):
    """A deviation of zero is divided by the root of eps: what a mean is off would be seen 316 times larger."""
    dice = torch.Generator().manual_seed(0)
    row = torch.randn(shape[1], generator=dice, dtype=torch.float64).mul(1e3).to(dtype)
    for layout in ("contiguous", "channels_last"):
        x = row.view(1, -1, *[1] * (len(shape) - 2)).expand(shape).contiguous()
        if layout == "channels_last" and len(shape) == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        w, b = torch.full((shape[1],), 3.0), torch.arange(shape[1], dtype=torch.float32)
        mean, var = torch.zeros_like(row), torch.ones_like(row)
        y = cpu.plan(x, w, b, mean, var).forward(x, False, None, 1, 0, 0.0, 1e-5, 1.0)
        assert torch.equal(y, b.to(dtype).view(1, -1, *[1] * (len(shape) - 2)).expand(shape))
        assert torch.equal(mean, row)
        assert not var.any()
