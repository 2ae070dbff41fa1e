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


# Layer and RMS norm: the terms, and the same norm by torch.
SAMPLES = {
    "layer": (
        lambda g, x, shape, w: ops.layer_norm_backward_terms(g, x, shape, w, EPS),
        lambda x, shape, w: torch.nn.functional.layer_norm(x, shape, w, None, EPS),
    ),
    "rms": (
        lambda g, x, shape, w: ops.rms_norm_backward_terms(g, x, shape, w, EPS),
        lambda x, shape, w: torch.nn.functional.rms_norm(x, shape, w, EPS),
    ),
}
TERMS = [(norm, term) for norm in SAMPLES for term in GradientTerms._fields if (norm, term) != ("rms", "mean_coupling")]


def sample_case(size, shape, seed=0):
    x, g, _ = case(size, seed)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return x, g, weight


def off(terms, norm, x, g, w, shape):
    (right,) = torch.autograd.grad(SAMPLES[norm][1](x, shape, w), x, g)
    return ((terms.total() - right).norm() / right.norm()).item()


@pytest.mark.parametrize("norm", SAMPLES)
@settings(deadline=None, max_examples=30)
@given(
    size=st.lists(st.integers(2, 6), min_size=2, max_size=4),
    axes=st.integers(1, 2),
    weighted=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_sum_is_the_gradient_of_a_sample(norm, size, axes, weighted, seed):
    shape = (*size[-axes:-1], size[-1] + 1)
    x, g, w = sample_case((*size[:-1], size[-1] + 1), shape, seed)
    w = w if weighted else None
    terms = SAMPLES[norm][0](g, x, shape, w)
    assert all(term.shape == x.shape for term in terms)
    assert off(terms, norm, x, g, w, shape) < 1e-9


@pytest.mark.parametrize(("norm", "name"), TERMS)
def test_no_term_of_a_sample_is_idle_and_a_wrong_sign_is_caught(norm, name):
    x, g, w = sample_case((8, 3, 5), (3, 5))
    terms = SAMPLES[norm][0](g, x, (3, 5), w)
    for factor in (0, -1):
        assert off(terms._replace(**{name: factor * getattr(terms, name)}), norm, x, g, w, (3, 5)) > 1e-2


@pytest.mark.parametrize("norm", SAMPLES)
def test_each_term_of_a_sample_is_the_path_it_names(norm):
    """Cut the other paths with detach and let autograd do the rest."""
    x, g, w = sample_case((6, 9), (9,))
    terms = SAMPLES[norm][0](g, x, (9,), w)
    mean = x.mean(1, keepdim=True) if norm == "layer" else torch.zeros(6, 1, dtype=torch.float64).requires_grad_()
    rstd = ((x - mean).square().mean(1, keepdim=True) + EPS).rsqrt()
    xd, md, rd = x.detach(), mean.detach(), rstd.detach()
    paths = ((x - md) * rd, (xd - mean) * rd, (xd - md) * rstd)
    for term, y in zip(terms, paths, strict=True):
        right = torch.autograd.grad((w * y * g).sum(), x, retain_graph=True, allow_unused=True, materialize_grads=True)
        torch.testing.assert_close(term, right[0])


def test_the_rescaling_of_a_sample_is_off_by_theory():
    """Layer norm removes two of d directions, RMS norm one: rescaling is off by sqrt(2/(d-2)) and sqrt(1/(d-1))."""
    d, samples = 64, 4000
    x, g, _ = sample_case((samples, d), (d,), 3)
    for norm, removed in (("layer", 2), ("rms", 1)):
        terms = SAMPLES[norm][0](g - 0.3, x, (d,), None)
        missed = (terms.rescale - terms.total()).norm(dim=1) / terms.total().norm(dim=1)
        assert missed.square().mean().sqrt().item() == pytest.approx((removed / (d - removed)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("norm", SAMPLES)
def test_terms_of_a_sample_can_be_differentiated(norm):
    x, g, w = sample_case((3, 2, 4), (2, 4))
    assert torch.autograd.gradcheck(
        lambda x, g, w: tuple(SAMPLES[norm][0](g, x, (2, 4), w)), (x, g.requires_grad_(), w.requires_grad_())
    )


@pytest.mark.parametrize("norm", SAMPLES)
def test_half_precision_of_a_sample_is_split_in_float32(norm):
    x, g, w = (t.detach().to(torch.bfloat16) for t in sample_case((5, 64), (64,)))
    right = SAMPLES[norm][0](g.double(), x.double(), (64,), w.double())
    for term, value in zip(SAMPLES[norm][0](g, x, (64,), w), right, strict=True):
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, value.float(), rtol=1e-4, atol=1e-5)


def test_terms_of_a_sample_at_an_offset_and_at_the_default_eps():
    x, g, w = sample_case((5, 64), (64,))
    at = (1e4 + x.detach()).float()
    right = ops.layer_norm_backward_terms(g, at.double(), (64,), w)
    for term, value in zip(ops.layer_norm_backward_terms(g.float(), at, (64,), w.float()), right, strict=True):
        assert ((term - value).abs().max() / value.abs().max()).item() < 1e-5
    small = 1e-4 * x.detach().float()  # its mean square is 1e-8 and float32's spacing 1.2e-7: eps decides
    (slope,) = torch.autograd.grad(
        torch.nn.functional.rms_norm(small.requires_grad_(), (64,), w.float()), small, g.float()
    )
    total = ops.rms_norm_backward_terms(g.float(), small.detach(), (64,), w.float()).total()
    torch.testing.assert_close(total, slope, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("terms", [ops.layer_norm_backward_terms, ops.rms_norm_backward_terms])
def test_terms_of_a_sample_refuse_a_shape_that_does_not_fit(terms):
    x = torch.ones(3, 4)
    with pytest.raises(ops.ShapeError, match="last axes are"):
        terms(x, x, (3,))
    with pytest.raises(ops.ShapeError, match="weight and bias of shape"):
        terms(x, x, (4,), torch.ones(3))
