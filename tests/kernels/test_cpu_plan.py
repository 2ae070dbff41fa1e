"""What the CPU kernel reads of a tensor: where it takes one, it must be right about its memory."""

import sys
import types

import pytest
import torch
from torch._subclasses import FakeTensorMode

from normscope import layers, ops
from normscope.kernels import cpu
from normscope.ops.ways import choose

pytestmark = [
    pytest.mark.skipif(bool(cpu.why_not()), reason="no kernel on this machine"),
    pytest.mark.usefixtures("reading"),
]


class Own(torch.Tensor):
    """A subclass, whose operations are its own."""


def images():
    """Inputs ``(N, C, *)``, each with whether the kernel may go by its addresses."""
    x = torch.randn(4, 6, 5, 7)
    last = x.contiguous(memory_format=torch.channels_last)
    yield "contiguous", x, True
    yield "channels_last", last, True
    yield "float64", x.double(), True
    yield "bfloat16", x.bfloat16(), True
    yield "a parameter", torch.nn.Parameter(x), True
    yield "vectors", torch.randn(5, 3), True
    yield "sequences", torch.randn(5, 3, 8), True
    yield "sequences, channels last", torch.randn(5, 8, 3).mT, True
    yield "volumes", torch.randn(2, 3, 4, 5, 6), True
    yield "volumes, channels last", torch.randn(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d), True
    yield "one sample cut out", x[1:2], True
    yield "samples cut out", x[1:], True
    yield "one channel", torch.randn(4, 1, 5, 7), True
    yield "one channel cut out", x[:, :1], False
    yield "maps of one", torch.randn(4, 6, 1, 1), True
    yield "steps that say nothing", torch.randn(4, 6).as_strided((4, 6, 1), (6, 1, 99)), True
    yield "one sample with any step", torch.randn(60).as_strided((1, 6, 10), (7, 10, 1)), True
    yield "every other sample", x[::2], False
    yield "channels cut out", x[:, :3], False
    yield "channels cut out, last", last[:, :3], False
    yield "rows cut out", x[:, :, :3], False
    yield "columns cut out", x[..., :3], False
    yield "transposed", x.transpose(2, 3), False
    yield "transposed, last", last.transpose(2, 3), False
    yield "samples last", x.permute(1, 0, 2, 3), False
    yield "expanded", torch.randn(4, 6, 1, 1).expand(4, 6, 5, 7), False
    yield "expanded samples", torch.randn(1, 6).expand(4, 6), False
    yield "overlapping", torch.randn(60).as_strided((4, 6, 3), (6, 1, 1)), False
    yield "with its sign still to change", torch._neg_view(x), False
    yield "half", x.half(), False
    yield "whole numbers", x.long(), False
    yield "complex", x.to(torch.complex64), False
    yield "sparse", torch.randn(4, 6).to_sparse(), False
    yield "without memory", x.to("meta"), False
    yield "opaque", x.to_mkldnn(), False
    yield "zeros without memory", torch._efficientzerotensor((4, 6)), False
    yield "a subclass", x.as_subclass(Own), False
    yield "empty", x[:0], False
    yield "one axis", torch.randn(6), False
    yield "no tensor", [1.0, 2.0], False
    with FakeTensorMode():
        yield "a fake", torch.randn(4, 6), False


@pytest.mark.parametrize(("x", "taken"), [pytest.param(x, taken, id=name) for name, x, taken in images()])
def test_an_input_is_taken_only_where_its_memory_is_as_it_seems(x, taken, build):
    plan = cpu.plan(x)
    assert (plan is not None) is taken
    assert sys.exc_info() == (None, None, None)
    if not taken:
        return
    assert plan.count == x.numel() // x.shape[1]
    y = plan.forward(x.detach(), False, None, 1, 0, 0.0, 1e-5, 0.0)
    right = ops.normalize(x.detach().double(), None, None, 1e-5)[0]
    assert y.stride() == torch.empty_like(x).stride()
    assert y.dtype == x.dtype
    torch.testing.assert_close(y.double(), right, rtol=1e-2 if x.dtype == torch.bfloat16 else 1e-4, atol=1e-4)


def test_what_is_taken_at_once_is_what_nothing_speaks_against():
    """The short way and the long way, whose reasons are in words, must draw the line in one place."""
    for name, x, taken in images():
        if not isinstance(x, torch.Tensor):
            continue
        rows = [None] * 5
        if x.ndim > 1 and x.numel() and x.dtype.is_floating_point:
            with torch.device(x.device):
                rows = [torch.ones(x.shape[1]) for _ in range(4)] + [torch.tensor(0)]
        with FakeTensorMode() if name == "a fake" else torch.no_grad():
            at_once = choose.plan_at_once(x, *rows)
            reason = choose.why_no_kernel(x, *rows[:2], None if rows[2] is None else tuple(rows[2:4]))
        assert (at_once is not None) == (taken and x.numel() > x.shape[1]), name
        if at_once is not None:
            assert not reason, name


def rows():
    """Rows of six channels, each with whether the kernel may go by its address."""
    w = torch.randn(6)
    yield w, True
    yield None, True
    yield w.double(), True
    yield w.bfloat16(), True
    yield torch.nn.Parameter(w), True
    yield torch.randn(12)[3:9], True
    for bad in (
        w.half(),
        w[:5],
        torch.randn(7),
        w.new_empty(0),
        w.view(6, 1),
        w.view(1, 6),
        torch.randn(12)[::2],
        w[:1].expand(6),
        w.to("meta"),
        w.as_subclass(Own),
        torch.tensor(1.0),
        1.0,
    ):
        yield bad, False


@pytest.mark.parametrize("place", range(4))
def test_a_row_is_taken_only_where_it_has_one_number_a_channel_side_by_side(place):
    x = torch.randn(4, 6, 2, 2)
    for row, taken in rows():
        four = [None, None, torch.zeros(6), torch.ones(6)]
        four[place] = row
        if row is None and place >= 2:  # one of the two running statistics alone
            taken = False
        assert (cpu.plan(x, *four) is not None) is taken, row


def test_a_count_is_one_whole_number():
    x, m, v = torch.randn(4, 6), torch.zeros(6), torch.ones(6)
    for count, taken in [
        (torch.tensor(3), True),
        (None, True),
        (torch.tensor([3]), False),
        (torch.tensor(3, dtype=torch.int32), False),
        (torch.tensor(3.0), False),
        (3, False),
    ]:
        assert (cpu.plan(x, None, None, m, v, count) is not None) is taken


def test_a_parameter_is_read_as_it_is_now():
    """Its memory can be exchanged under its name: nothing of it may be remembered from one call to the next."""
    layer = layers.BatchNorm1d(6, activation="relu")
    x = torch.randn(16, 6)
    layer(x)
    layer.weight.data = torch.full((6,), 2.0, dtype=torch.float64)
    expected = 2 * layers.BatchNorm1d(6)(x).relu()
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-6)
    layer.weight.data = torch.ones(3)
    with pytest.raises(ops.ShapeError, match="one value for each of the 6 channels"):
        layer(x)
    layer.weight.data = torch.ones(12)[::2]
    torch.testing.assert_close(layer(x), expected / 2, rtol=1e-6, atol=1e-6)


def test_a_plan_is_used_once_and_for_its_own_tensors(build):
    x, g = torch.randn(2, 8, 6)
    arguments = (False, None, 1, 0, 0.0, 1e-5, 0.0)
    wanted = (True, False, False, False, 1, False)
    plan = cpu.plan(x)
    with pytest.raises(ValueError, match="a backward before the forward"):
        plan.backward(g, x, None, None, *wanted)
    with pytest.raises(ValueError, match="the input"):
        plan.forward(x.clone(), *arguments)
    with pytest.raises(ValueError, match="what is saved"):
        plan.forward(x, False, torch.empty(5, 6), *arguments[2:])
    with pytest.raises(TypeError, match="expected 8 arguments, got 2"):
        plan.forward(x, False)
    with pytest.raises(TypeError, match="must be real number"):
        plan.forward(x, False, None, 1, 0, "a", 1e-5, 0.0)
    plan.forward(x, *arguments)
    with pytest.raises(ValueError, match="a second forward"):
        plan.forward(x, *arguments)
    for other in (g.double(), g.mT.contiguous().mT, g[:4], torch.randn(8, 6, 1, 2), g.as_subclass(Own)):
        assert plan.backward(other, x, None, None, *wanted) is None
    for other in (x.double(), x[:4], torch.randn(8, 3)):
        assert plan.backward(torch.randn_like(other), other, None, None, *wanted) is None
    assert plan.backward(g, x, torch.ones(5), None, *wanted) is None
    assert plan.backward(g, x, None, None, *wanted)[1:] == (None, None)
    with pytest.raises(TypeError, match="cannot create"):
        type(plan)()


def test_a_backward_takes_the_layout_that_its_tensors_have_now(build):
    """What a hook on saved tensors brings back need not be laid out as it was."""
    x, g = torch.randn(2, 4, 6, 5, 5)
    plan = cpu.plan(x)
    plan.forward(x, False, None, 1, 1, 0.0, 1e-5, 0.0)
    wanted = (True, False, False, False, 1, False)
    right = plan.backward(g, x, None, None, *wanted)[0]
    last = torch.channels_last
    found = plan.backward(g.contiguous(memory_format=last), x.contiguous(memory_format=last), None, None, *wanted)[0]
    torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)


def test_a_plan_keeps_what_it_was_given_until_its_forward(build):
    x, seen = torch.randn(64, 50), torch.tensor(0)
    for _ in range(20):
        plan = cpu.plan(x, torch.zeros(50), torch.full((50,), 3.0), torch.zeros(50), torch.ones(50), seen)
        junk = [torch.full((50,), float("nan")) for _ in range(8)]  # where freed rows would have been
        assert torch.equal(plan.forward(x, False, None, 1, 0, 0.0, 1e-5, 0.1), torch.full((64, 50), 3.0))
        del junk
    assert seen == 20


def test_nothing_is_kept_after_a_call(build):
    x, w, m, v, g = torch.randn(8, 6), torch.ones(6), torch.zeros(6), torch.ones(6), torch.randn(8, 6)
    seen, saved = torch.tensor(0), torch.empty(6, 6)
    held = (x, w, m, v, g, seen, saved, torch.float32, torch.strided, torch.empty_like, None, True)
    before = [sys.getrefcount(o) for o in held]
    for _ in range(200):
        plan = cpu.plan(x, w, w, m, v, seen)
        plan.forward(x, False, saved, 1, 1, 0.0, 1e-5, 0.1)
        plan.backward(g, x, w, w, True, True, False, False, 1, False)
        plan.backward(g[:3], x, w, w, True, True, True, False, 1, False)
        cpu.plan(x, w[:2])
        del plan
    after = [sys.getrefcount(o) for o in held]
    assert all(abs(b - a) < 50 for a, b in zip(before, after, strict=True))


def without_exchange(*args):
    """Take what a build took that knew of no exchange."""
    if len(args) != 8:
        raise TypeError(f"expected 8 arguments, got {len(args)}")


@pytest.mark.parametrize("older", [{}, {"learn": without_exchange}])
def test_a_build_of_older_sources_is_not_used(monkeypatch, older):
    name = "_baseline"
    module = types.ModuleType("old")
    vars(module).update(older)
    monkeypatch.setitem(sys.modules, f"{cpu.__name__}.{name}", module)
    with pytest.raises(ImportError, match="built from older sources"):
        cpu.build(name)
