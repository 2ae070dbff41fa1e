"""The three gradient terms: their sum is the gradient, and each is the path that its name says."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from normscope import ops
from normscope.ops.backward_terms import GradientTerms

EPS = 1e-3


def case(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, g = (torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(2))
    return x.requires_grad_(), g + 0.3, torch.randn(size[1], generator=generator, dtype=torch.float64)


def exact(terms, x, g, w):
    (right,) = torch.autograd.grad(torch.nn.functional.batch_norm(x, None, None, w, None, True, 0.0, EPS), x, g)
    return ((terms.total() - right).norm() / right.norm()).item()


@settings(deadline=None, max_examples=40)
@given(
    size=st.one_of(
        st.tuples(st.integers(3, 9), st.integers(1, 4)),
        st.tuples(st.integers(3, 9), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
    ),
    seed=st.integers(0, 2**31),
)
def test_the_sum_is_the_gradient(size, seed):
    x, g, w = case(size, seed)
    terms = ops.batch_norm_backward_terms(g, x, w, EPS)
    assert all(term.shape == x.shape for term in terms)
    assert exact(terms, x, g, w) < 1e-9


@pytest.mark.parametrize("name", GradientTerms._fields)
def test_no_term_is_idle_and_a_wrong_sign_is_caught(name):
    x, g, w = case((16, 3, 2))
    terms = ops.batch_norm_backward_terms(g, x, w, EPS)
    for factor in (0, -1):
        assert exact(terms._replace(**{name: factor * getattr(terms, name)}), x, g, w) > 1e-2


@pytest.mark.parametrize("weighted", [True, False])
def test_each_term_is_the_path_it_names(weighted):
    """Cut the other paths with detach and let autograd do the rest."""
    x, g, w = case((16, 3, 2))
    w = w if weighted else None
    terms = ops.batch_norm_backward_terms(g, x, w, EPS)
    mean = x.mean((0, 2), keepdim=True)
    rstd = ((x - mean).square().mean((0, 2), keepdim=True) + EPS).rsqrt()
    gain = 1 if w is None else w.view(-1, 1)
    xd, md, rd = x.detach(), mean.detach(), rstd.detach()
    paths = ((x - md) * rd, (xd - mean) * rd, (xd - md) * rstd)
    for term, y in zip(terms, paths, strict=True):
        (right,) = torch.autograd.grad((gain * y * g).sum(), x, retain_graph=True)
        torch.testing.assert_close(term, right)


def test_for_an_unrelated_gradient_the_first_term_is_off_by_theory():
    """Two of m directions are removed: the rescaling alone is off by sqrt(2 / (m - 2))."""
    m, channels = 64, 4000
    x, g, w = case((m, channels), 3)
    terms = ops.batch_norm_backward_terms(g - 0.3, x, w, 0.0)
    off = (terms.rescale - terms.total()).norm(dim=0) / terms.total().norm(dim=0)
    assert off.square().mean().sqrt().item() == pytest.approx((2 / (m - 2)) ** 0.5, rel=0.05)


def test_terms_can_be_differentiated():
    x, g, w = case((5, 2))
    w.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, g, w: tuple(ops.batch_norm_backward_terms(g, x, w, EPS)), (x, g.requires_grad_(), w)
    )


def test_float32_with_an_offset():
    x, g, w = case((64, 5))
    x = (1e4 + x.detach()).float()
    right = ops.batch_norm_backward_terms(g, x.double(), w)
    for term, value in zip(ops.batch_norm_backward_terms(g.float(), x, w.float()), right, strict=True):
        assert term.dtype == torch.float32
        assert ((term - value).abs().max() / value.abs().max()).item() < 1e-5


def test_half_precision_is_split_in_float32():
    x, g, w = (t.detach().to(torch.bfloat16) for t in case((64, 5)))
    assert {term.dtype for term in ops.batch_norm_backward_terms(g, x, w)} == {torch.float32}
