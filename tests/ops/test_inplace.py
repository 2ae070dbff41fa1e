"""The memory-saving mode: the same numbers from the output alone, and left off where they would not be."""

import pytest
import torch
import torch.nn.functional as F

from normscope import ops
from normscope.ops.ways.in_place import can_be_inverted

F64 = torch.float64


def case(dtype=F64, shape=(16, 4, 5), offset=0.0):
    generator = torch.Generator().manual_seed(4)
    x, g = (torch.randn(shape, generator=generator, dtype=F64) for _ in range(2))
    w, b = torch.randn(2, shape[1], generator=generator, dtype=F64)
    w = w + 0.3 * w.sign()
    return (offset + x).to(dtype), (g + 0.2).to(dtype), w.to(dtype), b.to(dtype)


def usual(x, w, b, slope):
    y = ops.batch_norm(x, w, b)
    return y if slope == 1 else F.leaky_relu(y, slope)


def both(dtype, slope, weighted=True, create_graph=False, **more):
    x, g, w, b = case(dtype, **more)
    results = []
    for in_place in (True, False):
        leaf = x.clone().requires_grad_()
        p = [t.clone().requires_grad_() for t in (w, b)] if weighted else [None, None]
        h = leaf * 1
        y = ops.batch_norm_in_place(h, *p, 1e-5, slope)[0] if in_place else usual(h, *p, slope)
        assert (y.data_ptr() == h.data_ptr()) is in_place
        wanted = (leaf, *(t for t in p if t is not None))
        found = torch.autograd.grad(y, wanted, g, create_graph=create_graph)
        if create_graph:
            total = sum((f * f.tanh()).sum() for f in found)
            found = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
        results.append((y.detach(), *found))
    return results


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("slope", [1.0, 0.01, 0.3, 2.0])
def test_is_the_usual_way_to_second_order(slope, weighted):
    for create_graph in (False, True):
        for found, right in zip(*both(F64, slope, weighted, create_graph), strict=True):
            torch.testing.assert_close(found, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("slope", [1.0, 0.01])
def test_float32_gradients_to_a_few_in_ten_million(slope, offset):
    x, g, w, b = case(torch.float32, (64, 16, 8, 8), offset)
    exact = x.double().requires_grad_()
    p = [t.double().requires_grad_() for t in (w, b)]
    right = torch.autograd.grad(usual(exact, *p, slope), (exact, *p), g.double())
    found = both(torch.float32, slope, shape=(64, 16, 8, 8), offset=offset)[0][1:]
    for part, value in zip(found, right, strict=True):
        assert (part - value).abs().max() / value.abs().max() < 4e-7


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_right_to_its_own_digits(dtype):
    found, right = both(dtype, 0.01)
    for part, value in zip(found[1:], right[1:], strict=True):
        assert (part - value).abs().max() / value.abs().max() < 4 * torch.finfo(dtype).eps


def test_keeps_nothing_but_its_output():
    """All that is saved for the backward, of the size of the input, is one tensor: the output."""
    saved = []

    def pack(t):
        saved.append(t)
        return t

    x, _, w, b = case()
    h = x.requires_grad_() * 1
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y, _ = ops.batch_norm_in_place(h, w.requires_grad_(), b.requires_grad_(), 1e-5, 0.01)
    assert {t.data_ptr() for t in saved if t.shape == x.shape} == {y.data_ptr()}


@pytest.mark.parametrize(
    ("w", "b", "fits"),
    [
        ([1.0, -1.0], [0.0, 8.0], True),
        ([1.0, -1.0], [0.0, 8.1], False),
        ([1.0, 0.0], [0.0, 0.0], False),
        ([1e-5, 1.0], [0.0, 0.0], True),
        ([1e-7, 1.0], [0.0, 0.0], False),
        ([1.0, torch.nan], [0.0, 0.0], False),
    ],
)
def test_the_bound(w, b, fits):
    assert can_be_inverted(torch.tensor(w), torch.tensor(b)) is fits
    x = torch.randn(8, 2, requires_grad=True)
    h = x * 1
    y, _ = ops.batch_norm_in_place(h, torch.tensor(w), torch.tensor(b), 1e-5)
    assert (y.data_ptr() == h.data_ptr()) is fits
    if not any(v != v for v in w):
        (found,) = torch.autograd.grad(y.square().sum(), x)
        y = usual(x, torch.tensor(w), torch.tensor(b), 1.0)
        torch.testing.assert_close(found, torch.autograd.grad(y.square().sum(), x)[0], rtol=1e-4, atol=1e-5)


def test_beyond_the_bound_it_would_be_wrong(monkeypatch):
    import importlib

    module = importlib.import_module("normscope.ops.ways.in_place")
    monkeypatch.setattr(module, "can_be_inverted", lambda *_: True)
    x = torch.randn(64, 1, requires_grad=True)
    w, b = torch.tensor([1e-3]), torch.tensor([1000.0])
    y, _ = ops.batch_norm_in_place(x * 1, w, b, 1e-5)
    g = torch.randn_like(x)
    (found,) = torch.autograd.grad(y, x, g)
    (right,) = torch.autograd.grad(usual(x, w, b, 1.0), x, g)
    assert (found - right).abs().max() / right.abs().max() > 1e-3


def test_what_must_not_be_overwritten_is_not():
    x, _, w, b = case()
    leaf = x.clone().requires_grad_()
    before = leaf.detach().clone()
    for source in (lambda: leaf, lambda: (leaf * 1)[:], lambda: x):
        h = source()
        y, _ = ops.batch_norm_in_place(h, w, b, 1e-5, 0.01)
        assert y.data_ptr() != h.data_ptr()
        torch.testing.assert_close(y, usual(leaf, w, b, 0.01))
    assert torch.equal(leaf, before)
    with torch.no_grad():
        assert ops.batch_norm_in_place(x, w, b, 1e-5)[0].data_ptr() != x.data_ptr()


def test_an_input_that_is_needed_elsewhere_is_missed():
    h = torch.randn(8, 2, requires_grad=True).sigmoid()  # keeps its output for its backward
    y, _ = ops.batch_norm_in_place(h, None, None, 1e-5)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        y.sum().backward()


@pytest.mark.parametrize("slope", [1.0, 0.3, 2.0])
def test_without_the_kernel_it_is_the_same_function(slope):
    for weighted in (True, False):
        with ops.using("torch"):
            ours, right = both(F64, slope, weighted)
        for a, b in zip(ours, right, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
