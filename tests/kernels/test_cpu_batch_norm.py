"""The CPU kernel against float64 and autograd, in every build that this machine runs."""

import importlib
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from normscope import layers, ops
from normscope._errors import UsageError
from normscope.kernels import cpu
from normscope.ops import _choose

pytestmark = pytest.mark.skipif(bool(cpu.why_not()), reason=cpu.why_not() or "runs")
EPS = 1e-5
LAYOUTS = ("contiguous", "channels_last", "unaligned", "strided")


def builds():
    if cpu.why_not():
        return []
    runs = importlib.import_module("normscope.kernels.cpu._baseline").supports()
    return [name for name in ("_avx512", "_avx2", "_baseline") if runs.get(name, True)]


@pytest.fixture(params=builds())
def build(request, monkeypatch):
    try:
        module = importlib.import_module(f"normscope.kernels.cpu.{request.param}")
    except ImportError:
        pytest.skip("the compiler had no such instruction set")
    monkeypatch.setattr(cpu, "_kernel", lambda: module)
    return request.param


def lay_out(x, layout):
    if layout == "channels_last" and x.ndim > 2:
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "unaligned":  # one element past what an allocation begins with
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)
    if layout == "strided":
        return torch.stack([x, x], -1)[..., 0]
    return x.contiguous()


def draw(shape, dtype=torch.float32, offset=0.0, layout="contiguous", seed=0):
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=source, dtype=torch.float64) * 1.7 + offset
    w, b = torch.rand(shape[1], generator=source) + 0.4, torch.randn(shape[1], generator=source)
    w[0] *= -1
    g = torch.randn(shape, generator=source)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return lay_out(x.to(dtype), layout), w.to(wide), b.to(wide), lay_out(g.to(dtype), layout)


def written_out(x, w, b, g, activation, slope=0.2):
    """Output and gradients in float64, by autograd of the formula."""
    x, w, b = (t.detach().double().requires_grad_() for t in (x, w, b))
    axes, by = (0, *range(2, x.ndim)), (-1, *(1,) * (x.ndim - 2))
    centred = x - x.mean(axes).view(by)
    z = centred * (centred.square().mean(axes) + EPS).rsqrt().view(by) * w.view(by) + b.view(by)
    y = z if activation is None else z.relu() if activation == "relu" else F.leaky_relu(z, slope)
    return y.detach(), *torch.autograd.grad(y, (x, w, b), g.double())


def by_kernel(x, w, b, g, activation, slope=0.2, running=(None, None)):
    x, w, b = (t.detach().requires_grad_() for t in (x, w, b))
    with ops.using("kernel"):
        assert ops.explain(x, w, b).way == "kernel"
        y = ops.batch_norm(
            x,
            w,
            b,
            eps=EPS,
            running_mean=running[0],
            running_var=running[1],
            activation=activation,
            negative_slope=slope,
        )
        return y.detach(), *torch.autograd.grad(y, (x, w, b), g)


def errors(found, right):
    return [
        float((a.double() - b).abs().max() / b.abs().max().clamp(min=1e-300)) for a, b in zip(found, right, strict=True)
    ]


def off_the_kinks(found, right, x, w, b, activation):
    """Leave out of the input's gradient elements so near a kink that rounding decides the side."""
    if activation is None:
        return found, right
    z = written_out(x, w, b, torch.zeros_like(x), None)[0]
    keep = z.abs() > 1e-3 * (1 + z.abs().max()) if x.dtype == torch.bfloat16 else z.abs() > 1e-5 * (1 + z.abs().max())
    return (found[0], found[1] * keep, *found[2:]), (right[0], right[1] * keep, *right[2:])


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
    found, right = by_kernel(x, w, b, g, activation), written_out(x, w, b, g, activation)
    found, right = off_the_kinks(found, right, x, w, b, activation)
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


def test_derivatives_of_derivatives_are_the_written_out_ones():
    x, w, b, g = (t.double() for t in draw((6, 3, 4)))
    for activation in (None, "leaky_relu"):
        seconds = []
        for way in ("kernel", "written_out"):
            xs, ws, bs = (t.detach().clone().requires_grad_() for t in (x, w, b))
            with ops.using(way):
                y = ops.batch_norm(xs, ws, bs, activation=activation, negative_slope=0.3)
                first = torch.autograd.grad((y * g).sum(), (xs, ws, bs), create_graph=True)
                seconds.append(torch.autograd.grad(sum((f**2).sum() for f in first), (xs, ws)))
        for one, other in zip(*seconds, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own forward derivatives are scripted
def test_finite_differences_and_tangents_to_second_order():
    x, w, b, _ = (t.double() for t in draw((5, 3, 4)))

    def f(x, w, b):
        return ops.batch_norm(x, w, b, activation="leaky_relu", negative_slope=0.3)

    inputs = tuple(t.clone().requires_grad_() for t in (x, w, b))
    assert ops.explain(*inputs).way == "kernel"
    assert torch.autograd.gradcheck(f, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, inputs)


def test_what_is_not_wanted_is_not_computed_and_odd_cotangents_are_taken():
    x, w, b, _ = draw((8, 4, 6, 6))
    for needs in [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 1, 0)]:
        ts = [t.clone().requires_grad_(bool(n)) for t, n in zip((x, w, b), needs, strict=True)]
        ops.batch_norm(*ts).sum().backward()  # the cotangent is one number, expanded
        for t, n in zip(ts, needs, strict=True):
            assert (t.grad is not None) == bool(n)
    y = ops.batch_norm(ts[0], ts[1], ts[2])
    turned = torch.randn(6, 6, 4, 8).permute(3, 2, 1, 0)
    (one,) = torch.autograd.grad(y, ts[0], turned, retain_graph=True)
    (other,) = torch.autograd.grad(y, ts[0], turned.contiguous())
    assert torch.equal(one, other)


def test_using_asks_for_a_way_and_says_when_there_is_none(monkeypatch):
    x, w, b, _ = draw((16, 4, 6, 6))
    results = {}
    for way in ("kernel", "torch", "written_out"):
        with ops.using(way):
            assert ops.explain(x, w, b).way == way
            results[way] = ops.batch_norm(x, w, b, activation="relu")
    for other in ("torch", "written_out"):
        torch.testing.assert_close(results["kernel"], results[other])
    with pytest.raises(UsageError, match="'written_out', 'torch' and 'kernel'"), ops.using("fast"):
        pass
    monkeypatch.setattr(cpu, "why_not", lambda: "no compiler was there")
    with pytest.raises(UsageError, match="no compiler was there"), ops.using("kernel"):
        pass
    assert str(ops.explain(x)) == "torch: no compiler was there"
    torch.testing.assert_close(ops.batch_norm(x, w, b, activation="relu"), results["kernel"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("case", ["half", "complex weight", "meta", "subclass", "mode", "trace", "strided weight"])
def test_what_the_kernel_must_not_touch_goes_another_way(case):
    x, w, b, _ = draw((6, 3, 4, 4))
    if case == "half":
        assert "float16" in _choose.why_no_kernel(x.half(), w, b)
        assert ops.batch_norm(x.half(), w, b).dtype == torch.float16
    elif case == "complex weight":
        assert _choose.why_no_kernel(x, w.half(), b)
    elif case == "meta":
        assert "meta" in _choose.why_no_kernel(x.to("meta"), w, b)
        assert ops.batch_norm(x.to("meta"), w.to("meta"), b.to("meta")).shape == x.shape
    elif case == "subclass":

        class Own(torch.Tensor):
            pass

        assert "Own" in _choose.why_no_kernel(x.as_subclass(Own), w, b)
    elif case == "mode":
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode() as mode:
            fake = mode.from_tensor(x)
            assert _choose.why_no_kernel(fake)
            assert ops.batch_norm(fake).shape == x.shape
    elif case == "trace":
        layer = layers.BatchNorm2d(3, activation="relu").eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(layer, x, check_trace=False)
            torch.testing.assert_close(traced(2 * x), layer(2 * x))
    else:
        assert _choose.why_no_kernel(x, torch.stack([w, w], -1)[:, 0], b)


def test_a_layer_with_an_activation_is_torchs_layer_and_activation():
    ours, theirs = (
        layers.BatchNorm2d(5, activation="relu"),
        torch.nn.Sequential(torch.nn.BatchNorm2d(5), torch.nn.ReLU()),
    )
    for _ in range(3):
        x = torch.randn(8, 5, 6, 6)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        g = torch.randn_like(x)
        ours(a).backward(g)
        theirs(b).backward(g)
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    for name, values in theirs[0].state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], values)


def test_without_the_extension_everything_works_and_says_so(tmp_path):
    code = (
        "import sys, torch\n"
        "sys.modules['normscope.kernels.cpu._baseline'] = None\n"
        "from normscope import ops, layers\n"
        "x = torch.randn(8, 3, 4, 4, requires_grad=True)\n"
        "layers.BatchNorm2d(3, activation='relu')(x).sum().backward()\n"
        "print(ops.explain(x))\n"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.startswith("torch: the extension was not built")


def overwrites(arrange, monkeypatch):
    """Whether a backward in a given surrounding wrote the input's gradient over the cotangent."""
    fused = importlib.import_module("normscope.ops.fused")
    monkeypatch.setattr(fused, "LARGE", 0)
    used = []
    backward = cpu.backward
    monkeypatch.setattr(cpu, "backward", lambda *a, **k: (used.append(k["over"] is not None), backward(*a, **k))[1])
    x, w, b, _ = draw((8, 4, 6, 6))
    x.requires_grad_()
    with ops.using("kernel"):
        y = ops.batch_norm(x * 1, w, b, activation="relu")
    arrange(y, x)
    assert len(used) == 1
    return used[0]


@pytest.mark.skipif(not hasattr(torch.Tensor, "_use_count"), reason="this torch does not say who holds a tensor")
def test_a_cotangent_is_written_over_only_where_nobody_else_has_it(monkeypatch):
    kept = []
    g = torch.randn(8, 4, 6, 6)
    alone = {
        "a product": lambda y, x: (y * g).sum().backward(),
        "two uses": lambda y, x: (y * g + y.exp()).sum().backward(),
        "retain_grad": lambda y, x: (y.retain_grad(), (y * g).sum().backward(), kept.append((y.grad, g))),
        "inputs": lambda y, x: (torch.autograd.backward((y * g).sum(), inputs=[x, y]), kept.append((y.grad, g))),
    }
    shared = {
        "the caller's own": lambda y, x: (y.backward(g), kept.append((g, g.clone()))),
        "a shortcut": lambda y, x: ((y + x) * g).sum().backward(),
        "a hook": lambda y, x: (y.register_hook(lambda c: kept.append((c, g))), (y * g).sum().backward()),
        "a node's hook": lambda y, x: (
            y.grad_fn.register_prehook(lambda c: kept.append((c[0], g))),
            (y * g).sum().backward(),
        ),
        "a node's hook after": lambda y, x: (
            y.grad_fn.register_hook(lambda _, c: kept.append((c[0], g))),
            (y * g).sum().backward(),
        ),
        "asked for": lambda y, x: kept.append((torch.autograd.grad((y * g).sum(), (x, y))[1], g)),
        "a view": lambda y, x: (y.flatten() * g.flatten()).sum().backward(),
    }
    before = g.clone()
    for cases, expected in ((alone, True), (shared, False)):
        for name, arrange in cases.items():
            assert overwrites(arrange, monkeypatch) is expected, name
            monkeypatch.undo()
    for found, right in kept:
        assert torch.equal(found, right)
    assert torch.equal(g, before)


def test_gradients_are_the_same_over_the_cotangent_and_beside_it(monkeypatch):
    fused = importlib.import_module("normscope.ops.fused")
    results = []
    for large in (0, 1 << 40):
        monkeypatch.setattr(fused, "LARGE", large)
        x, w, b, g = draw((16, 6, 12, 12))
        ts = [t.requires_grad_() for t in (x, w, b)]
        with ops.using("kernel"):
            z = ops.batch_norm(ops.batch_norm(*ts, activation="relu") * 2 + x, *ts[1:], activation="leaky_relu")
        results.append(torch.autograd.grad((z * g).sum(), ts))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_outputs_past_the_cache_are_the_same_bits(build):
    module = cpu._kernel()
    for shape, layout in [((128, 40, 20, 20), "contiguous"), ((140, 64, 16, 16), "channels_last")]:
        for dtype in (torch.float32, torch.bfloat16):
            shape = shape if dtype == torch.float32 else (2 * shape[0], *shape[1:])
            case = draw(shape, dtype, layout=layout)
            results = []
            for expected in (False, True):
                module.expect_recycled(expected)
                results.append(by_kernel(*case, "relu"))
            module.expect_recycled(False)
            assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
