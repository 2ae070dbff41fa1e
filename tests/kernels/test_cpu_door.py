"""The door to the CPU kernel: derivatives beyond the first, what it must not touch, whose memory it may write over."""

import importlib
import pathlib
import subprocess
import sys
import warnings

import pytest
import torch
from cpu_oracles import draw

from normscope import layers, ops
from normscope._errors import UsageError
from normscope.kernels import cpu
from normscope.ops.ways import choose, ownership

pytestmark = pytest.mark.skipif(bool(cpu.why_not()), reason=cpu.why_not() or "runs")


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
        assert "float16" in choose.why_no_kernel(x.half(), w, b)
        assert ops.batch_norm(x.half(), w, b).dtype == torch.float16
    elif case == "complex weight":
        assert choose.why_no_kernel(x, w.half(), b)
    elif case == "meta":
        assert "meta" in choose.why_no_kernel(x.to("meta"), w, b)
        assert ops.batch_norm(x.to("meta"), w.to("meta"), b.to("meta")).shape == x.shape
    elif case == "subclass":

        class Own(torch.Tensor):
            pass

        assert "Own" in choose.why_no_kernel(x.as_subclass(Own), w, b)
    elif case == "mode":
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode() as mode:
            fake = mode.from_tensor(x)
            assert choose.why_no_kernel(fake)
            assert ops.batch_norm(fake).shape == x.shape
    elif case == "trace":
        layer = layers.BatchNorm2d(3, activation="relu").eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(layer, x, check_trace=False)
            torch.testing.assert_close(traced(2 * x), layer(2 * x))
    else:
        assert choose.why_no_kernel(x, torch.stack([w, w], -1)[:, 0], b)


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


def watched(module, monkeypatch):
    """Return a list that tells of every backward of a module whether it wrote the gradient over the cotangent."""
    monkeypatch.setattr(ownership, "LARGE", 0)
    used, gradients = [], module.gradients

    def gradients_and_tell(g, *args):
        at = g.data_ptr()
        found = gradients(g, *args)
        used.append(found[0].data_ptr() == at)
        return found

    monkeypatch.setattr(module, "gradients", gradients_and_tell)
    return used


def overwrites(arrange, monkeypatch):
    """Whether a backward in a given surrounding wrote the input's gradient over the cotangent."""
    used = watched(importlib.import_module("normscope.ops.ways.kernel"), monkeypatch)
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
    results = []
    for large in (0, 1 << 40):
        monkeypatch.setattr(ownership, "LARGE", large)
        x, w, b, g = draw((16, 6, 12, 12))
        ts = [t.requires_grad_() for t in (x, w, b)]
        with ops.using("kernel"):
            z = ops.batch_norm(ops.batch_norm(*ts, activation="relu") * 2 + x, *ts[1:], activation="leaky_relu")
        results.append(torch.autograd.grad((z * g).sum(), ts))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_a_row_of_another_length_is_never_read_past_its_end():
    """By addresses it would be, and by torch's own kernel too: so it is refused before."""
    x, w, b, _ = draw((8, 4, 3, 3))
    for short in (w[:2].clone(), w.view(4, 1), w.new_empty(0)):
        assert "one number a channel" in choose.why_no_kernel(x, short, b)
        assert "one number a channel" in choose.why_no_kernel(x, w, b, (short, w))
    for call in (
        lambda short: ops.normalize(x, short, b, 1e-5),
        lambda short: ops.batch_norm(x, w, short),
        lambda short: ops.batch_norm_in_place(x.clone().requires_grad_() * 1, short, b, 1e-5),
        lambda short: ops.ghost_batch_norm(x, short, b, group_size=4),
    ):
        with pytest.raises(ops.ShapeError, match="should have one value for each of the"):
            call(w[:2].clone())


def test_what_has_no_statistics_is_explained_and_not_given_to_the_kernel():
    for shape in [(4,), (0, 3), (2, 3, 0)]:
        assert str(ops.explain(torch.zeros(shape))) == "torch: there is nothing to take statistics of"


@pytest.mark.skipif(not hasattr(torch.Tensor, "_use_count"), reason="this torch does not say who holds a tensor")
@pytest.mark.parametrize("held", [False, True])
def test_in_place_too_a_cotangent_is_written_over_only_where_nobody_else_has_it(held, monkeypatch):
    used, kept = watched(importlib.import_module("normscope.ops.ways.in_place"), monkeypatch), []
    x, w, b, g = draw((8, 4, 6, 6))
    y, _ = ops.batch_norm_in_place(x.requires_grad_() * 1, w, b.clamp(-1, 1), 1e-5, 0.2)
    if held:
        y.register_hook(kept.append)
    (y * g).sum().backward()
    assert used == [not held]
    assert all(torch.equal(cotangent, g) for cotangent in kept)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(
    "brought_back",
    [
        lambda t: torch.stack([t, t], -1)[..., 0],
        lambda t: t.double(),
        lambda t: t.mT.contiguous().mT if t.ndim > 1 else t,
    ],
    ids=["other strides", "another type", "transposed"],
)
def test_a_hook_on_saved_tensors_may_bring_back_others(brought_back, in_place):
    def found(unpack):
        x, w, b, g = draw((9, 4))
        ts = [t.requires_grad_() for t in (x, w, b.clamp(-1, 1).detach())]
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
            if in_place:
                y = ops.batch_norm_in_place(ts[0] * 1, *ts[1:], 1e-5, 0.2)[0]
            else:
                y = ops.batch_norm(*ts, activation="leaky_relu", negative_slope=0.2)
        return torch.autograd.grad(y, ts, g)

    for one, other in zip(found(brought_back), found(lambda t: t), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


LARGE_PAGES = """
import re, pathlib, torch
from normscope.kernels import cpu

def has_large_pages(at):
    inside = False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= at < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()

x, g = (torch.randn(40, 64, 64, 64) for _ in range(2))
inside = 4 << 20
for over in (False, True):
    plan = cpu.plan(x)
    y = plan.forward(x, over, None, 1, 0, 0.0, 1e-5, 0.0)
    g_x = plan.backward(g, y, None, None, True, False, False, over, 1, True)[0]
    print(*(has_large_pages(t.data_ptr() + inside) for t in (y, g_x, x)))
    del y, g_x
"""


@pytest.mark.skipif(
    not pathlib.Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no large pages"
)
def test_large_outputs_are_asked_for_in_large_pages_and_nothing_else_is():
    ran = subprocess.run([sys.executable, "-c", LARGE_PAGES], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["True True False", "False False False"]
