"""Lp normalization: against a plain twin, by finite differences, and at the constants of Gaussian values."""

import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError

from normscope import ops
from normscope.ops import lp

# torch's forward AD loads rules of its own through torch.jit
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

INF = math.inf
VARIANTS = [(p, centred, gaussian) for p in (1, 2, INF) for centred in (False, True) for gaussian in (False, True)]


def plain(x, weight, bias, p, centred, gaussian, eps=1e-5):
    """The definition, left to autograd."""
    rows = x.transpose(0, 1).flatten(1)
    about = rows - rows.mean(1, keepdim=True)
    base = about if centred else rows
    n = rows.shape[1]
    norm = base.abs().amax(1) if p == INF else base.abs().pow(p).mean(1).pow(1 / p)
    if gaussian:
        norm = norm * lp.gaussian_factor(p, n)
    y = about / (norm.square() + eps).sqrt()[:, None] * weight[:, None] + bias[:, None]
    return y.view(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)


def case(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * 1.7 + 0.6
    weight = torch.rand(shape[1], generator=generator, dtype=torch.float64) * 2 - 0.7
    bias = torch.randn(shape[1], generator=generator, dtype=torch.float64)
    return [t.requires_grad_() for t in (x, weight, bias)]


def bound(p, centred=False, gaussian=False):
    return lambda x, w, b: ops.lp_norm(x, w, b, p=p, centred=centred, gaussian=gaussian)


@pytest.mark.parametrize(("p", "centred", "gaussian"), VARIANTS)
@pytest.mark.parametrize("shape", [(7, 3), (4, 3, 5), (3, 2, 2, 3), (2, 2, 2, 2, 2)])
def test_is_its_definition(p, centred, gaussian, shape):
    inputs = case(*shape)
    ours, twin = bound(p, centred, gaussian)(*inputs), plain(*inputs, p, centred, gaussian)
    torch.testing.assert_close(ours, twin, rtol=1e-12, atol=1e-12)
    g = torch.randn_like(ours)
    found, wanted = torch.autograd.grad(ours, inputs, g), torch.autograd.grad(twin, inputs, g)
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("p", "centred"), [(p, centred) for p in (1, 2, INF) for centred in (False, True)])
def test_derivatives_of_every_kind(p, centred):
    inputs = case(4, 2, 3)
    f = bound(p, centred)
    assert gradcheck(f, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(f, inputs, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize(("p", "centred", "gaussian"), VARIANTS)
def test_a_derivative_of_a_derivative_by_torch_func(p, centred, gaussian):
    """Forward over forward: of a Function with a jvp of its own it would come out as zero."""
    x, w, b = (t.detach() for t in case(4, 2, 3))
    t = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)

    def twice(f):
        return torch.func.jvp(lambda x: torch.func.jvp(f, (x,), (t,))[1], (x,), (t,))[1]

    found = twice(lambda x: bound(p, centred, gaussian)(x, w, b))
    torch.testing.assert_close(found, twice(lambda x: plain(x, w, b, p, centred, gaussian)))
    assert found.abs().max() > 1e-3


@pytest.mark.parametrize("p", [1, 2, INF])
def test_the_statistics_are_differentiable_too(p):
    (x, _, _) = case(4, 2, 3)
    for by in (lp.Divisor(p), lp.Divisor(p, centred=True), lp.Divisor(p, centre=False)):
        assert gradcheck(lambda x, by=by: lp.divide(x, by, 1e-5)[3], [x], check_forward_ad=True)
        if by.centre:
            assert gradcheck(lambda x, by=by: sum(lp.divide(x, by, 1e-5)[1:3]), [x], check_forward_ad=True)


def test_order_two_about_the_mean_is_batch_norm():
    inputs = case(6, 3, 4)
    ours, theirs = bound(2, centred=True)(*inputs), ops.batch_norm(*inputs)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    g = torch.randn_like(ours)
    torch.testing.assert_close(
        torch.autograd.grad(ours, inputs, g), torch.autograd.grad(theirs, inputs, g), rtol=1e-12, atol=1e-12
    )


def no_norm_term(g, g_low, g_power, x, shift, low, power, by, eps):
    rstd = (power + eps).rsqrt()[:, None]
    return (g - g.mean((0, 2), keepdim=True)) * rstd


def norm_term_with_the_wrong_sign(*args):
    return 2 * no_norm_term(*args) - rules["backward"](*args)


def no_mean_term(g, *rest):
    return rules["backward"](g, *rest) + g.mean((0, 2), keepdim=True) * (rest[-3] + rest[-1]).rsqrt()[:, None]


rules = {"backward": lp.backward, "tangent": lp.tangent}


@pytest.mark.parametrize("wrong", [no_norm_term, norm_term_with_the_wrong_sign, no_mean_term])
@pytest.mark.parametrize("p", [1, 2, INF])
def test_a_wrong_backward_is_caught(monkeypatch, wrong, p):
    monkeypatch.setattr(lp, "backward", wrong)
    with pytest.raises(GradcheckError):
        gradcheck(bound(p), case(4, 2, 3))


def test_a_wrong_tangent_is_caught(monkeypatch):
    def wrong(*args):
        t_y, *rest = rules["tangent"](*args)
        return -t_y, *rest

    monkeypatch.setattr(lp, "tangent", wrong)
    with pytest.raises(GradcheckError):
        gradcheck(bound(2), case(4, 2, 3), check_forward_ad=True)


def test_values_that_attain_the_maximum_share_its_derivative():
    x = torch.tensor([[3.0], [-3.0], [1.0], [0.5]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, dtype=torch.float64)
    ours, twin = ops.lp_norm(x, p=INF), plain(x, one, 0 * one, INF, False, False)
    g = torch.tensor([[1.0], [2.0], [-1.0], [0.5]], dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(ours, x, g), torch.autograd.grad(twin, x, g))


def test_a_constant_channel_has_a_finite_gradient():
    for p in (1, 2, INF):
        for centred in (False, True):
            x = torch.zeros(5, 1, dtype=torch.float64, requires_grad=True)
            y = ops.lp_norm(x, p=p, centred=centred)
            (g,) = torch.autograd.grad(y.square().sum() + y[0].sum(), x, create_graph=True)
            (h,) = torch.autograd.grad(g.square().sum(), x)
            assert y.isfinite().all()
            assert g.isfinite().all()
            assert h.isfinite().all()


def test_the_factor_is_marked_as_a_constant_as_torch_marks_it():
    marked = torch.compiler.assume_constant_result(lambda: None)
    assert vars(marked)
    assert vars(marked).items() <= vars(lp.gaussian_factor).items()


def test_constants_of_gaussian_values():
    # E|z|, and E max(|z|, |z'|) = E|z + z'|/2 + E|z - z'|/2
    assert lp.gaussian_factor(INF, 1) == pytest.approx(math.sqrt(math.pi / 2), rel=1e-4)
    assert lp.gaussian_factor(INF, 2) == pytest.approx(math.sqrt(math.pi) / 2, rel=1e-9)
    # the maximum grows as sqrt(2 ln n)
    ratio = lp.gaussian_factor(INF, 10**3) / lp.gaussian_factor(INF, 10**12)
    assert ratio == pytest.approx(2, rel=0.1)
    x = torch.randn(4096, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 5
    for p, tolerance in ((1, 0.01), (2, 1e-6), (INF, 0.1)):
        y = ops.lp_norm(x, p=p, centred=True, gaussian=True)
        assert float(y.std(0).mean()) == pytest.approx(1, rel=tolerance + 1e-3)


def test_before_shifting_the_mean():
    # Santurkar et al. divide by the norm of the values as they come: an offset shrinks the output.
    x = torch.randn(4096, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert float(ops.lp_norm(x + 3, p=2).std()) == pytest.approx(1 / math.sqrt(1 + 9), rel=0.05)
    assert float(ops.lp_norm(x + 30, p=1).std()) == pytest.approx(1 / 30, rel=0.05)


@pytest.mark.parametrize("p", [1, 2, INF])
def test_running_statistics(p):
    (x, weight, bias) = (t.detach() for t in case(6, 3, 4))
    mean, norm = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    trained = ops.lp_norm(x, weight, bias, p=p, running_mean=mean, running_norm=norm, momentum=1.0)
    rows = x.transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, rows.mean(1))
    n = rows.shape[1]
    torch.testing.assert_close(norm, rows.norm(p, 1) / (1 if p == INF else n ** (1 / p)))
    read = ops.lp_norm(x, weight, bias, p=p, running_mean=mean, running_norm=norm, training=False)
    torch.testing.assert_close(read, trained)


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ops.ShapeError, "one value for each", lambda: ops.lp_norm(torch.ones(4, 3), torch.ones(2))),
        (ops.ShapeError, "more than 1 value", lambda: ops.lp_norm(torch.ones(1, 3))),
        (ops.ShapeError, "floating", lambda: ops.lp_norm(torch.ones(4, 3, dtype=torch.int64))),
        (ops.ShapeError, "running", lambda: ops.lp_norm(torch.ones(4, 3), training=False)),
        (ValueError, "floating", lambda: ops.lp_norm(torch.ones(4))),
    ],
)
def test_errors_are_one_line(error, words, call):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
