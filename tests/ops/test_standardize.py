"""The written-out rules against autograd of the written-out forward, and against finite differences."""

from contextlib import nullcontext

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from normscope import ops
from normscope.ops import standardization as rules
from normscope.ops.normalize import standardize_affine
from normscope.ops.sets import BATCH, Masked

EPS = 1e-3

# Torch's own forward-mode formulas are scripted with its deprecated compiler.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")


def leaves(shape=(6, 3, 4), dtype=torch.float64):
    # Never weight 1 and bias 0: there a rule that forgets them is right.
    return [torch.randn(s, dtype=dtype, requires_grad=True) for s in (shape, shape[1:2], shape[1:2])]


def close(a, b, tol=1e-11):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol)


def y_and_mean(y, shift, low, rstd, var):
    return y, shift + low


TRAIN = [
    pytest.param(lambda x, w, b: ops.batch_norm(x, w, b, eps=EPS), id="batch_norm"),
    pytest.param(lambda x, w, b: ops.batch_norm(x, w, None, eps=EPS) + b.sum(), id="no-bias"),
    pytest.param(lambda x, w, b: ops.batch_norm(x, None, b, eps=EPS) + w.sum(), id="no-weight"),
    pytest.param(lambda x, w, b: y_and_mean(*standardize_affine(x, w, b, EPS)), id="with-the-mean"),
    pytest.param(lambda x, w, b: standardize_affine(x, w, b, EPS)[3], id="rstd-alone"),
]
GIVEN = [
    pytest.param(
        lambda x, w, b: ops.batch_norm(
            x,
            w,
            b,
            eps=EPS,
            training=False,
            running_mean=torch.linspace(-1, 1, 3, dtype=x.dtype),
            running_var=torch.linspace(0.5, 2, 3, dtype=x.dtype),
        ),
        id="given-statistics",
    )
]


@pytest.mark.parametrize("run", TRAIN + GIVEN)
def test_first_derivatives_by_finite_differences(run):
    run, used = only_used(run, leaves())
    assert gradcheck(run, used, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)


@pytest.mark.parametrize("run", TRAIN + GIVEN)
def test_second_derivatives_by_finite_differences(run):
    run, used = only_used(run, leaves((5, 3, 2)))
    assert gradgradcheck(run, used, check_fwd_over_rev=True, check_rev_over_rev=True)


def only_used(run, inputs):
    """Leave out the inputs that the result does not depend on: the checks refuse them."""
    out = run(*inputs)
    total = sum(o.sum() for o in out) if isinstance(out, tuple) else out.sum()
    found = torch.autograd.grad(total, inputs, allow_unused=True)
    where = [i for i, g in enumerate(found) if g is not None]

    def run_used(*given):
        full = [p.detach() for p in inputs]
        for i, p in zip(where, given, strict=True):
            full[i] = p
        return run(*full)

    return run_used, [inputs[i] for i in where]


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 2), (0, 1), (-1, 1), (0, 1, 2)])
def test_any_axes_to_second_order(axes):
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)

    def run(x):
        return ops.standardize(x, axes, EPS)

    xhat, rstd = run(x)
    centred = x - x.mean(axes, keepdim=True)
    expected = (centred.square().mean(axes, keepdim=True) + EPS).rsqrt()
    close(rstd, expected)
    close(xhat, centred * expected)
    assert gradcheck(run, (x,), check_forward_ad=True)
    assert gradgradcheck(run, (x,), check_fwd_over_rev=True)


def reference(x, w, b, g):
    """Autograd of the written-out forward."""
    y, mean, rstd, _ = rules.forward(x, w, b, EPS)
    return torch.autograd.grad(y, (x, w, b), g), mean.detach(), rstd.detach()


def test_kernel_rule_and_autograd_agree(layout):
    x, w, b = leaves(layout.shape)
    x = layout.put(x.detach()).requires_grad_()
    g = layout.put(torch.randn(layout.shape, dtype=torch.float64) + 0.5)
    expected, mean, rstd = reference(x, w, b, g)
    by_kernel = torch.autograd.grad(ops.batch_norm(x, w, b, eps=EPS), (x, w, b), g)
    by_rule = torch.autograd.grad(ops.batch_norm(x, w, b, eps=EPS), (x, w, b), g, create_graph=True)
    by_hand = rules.backward(g, None, None, x, w, mean, rstd)
    for found in (by_kernel, by_rule, by_hand):
        for part, right in zip(found, expected, strict=True):
            torch.testing.assert_close(part, right, rtol=1e-10, atol=1e-10 * right.abs().max().item())


WRONG = {
    "mean-term-dropped": lambda t, xhat, *_: t - xhat * (t * xhat).mean((0, 2), keepdim=True),
    "variance-term-dropped": lambda t, xhat, *_: t - t.mean((0, 2), keepdim=True),
    "variance-term-sign": lambda t, xhat, *_: (
        t - t.mean((0, 2), keepdim=True) + xhat * (t * xhat).mean((0, 2), keepdim=True)
    ),
    "mean-term-sign": lambda t, xhat, *_: (
        t + t.mean((0, 2), keepdim=True) - xhat * (t * xhat).mean((0, 2), keepdim=True)
    ),
    "mean-over-batch-only": lambda t, xhat, *_: t - t.mean(0, keepdim=True) - xhat * (t * xhat).mean(0, keepdim=True),
}


def check_rules():
    x, w, b = leaves()
    g = torch.randn_like(x)
    expected, mean, rstd = reference(x, w, b, g)
    for part, right in zip(rules.backward(g, None, None, x, w, mean, rstd), expected, strict=True):
        close(part, right)
    t = torch.randn_like(x)
    _, forward = torch.autograd.functional.jvp(lambda x: rules.forward(x, w, b, EPS)[0], x, t)
    close(rules.tangent(t, None, None, x, w, mean, rstd)[0], forward)


def test_rules_are_right():
    check_rules()


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_rule_is_caught(wrong, monkeypatch):
    monkeypatch.setattr(rules, "project", wrong)
    with pytest.raises(AssertionError):
        check_rules()


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_rule_is_caught_by_finite_differences(wrong, monkeypatch):
    monkeypatch.setattr(rules, "project", wrong)
    monkeypatch.setattr(torch, "is_grad_enabled", lambda: True)  # the rule, not the kernel
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        gradcheck(TRAIN[0].values[0], leaves())


@pytest.mark.parametrize("activation", [None, "leaky_relu"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("way", ["chosen", "torch", "written_out"])
def test_a_gradient_that_will_be_differentiated_is_the_gradient(way, masked, activation):
    """Under create_graph the rules stand in for the kernels. Eps is beside the variance: without it they are wrong."""
    x, w, b = leaves((5, 3, 2))
    g = torch.randn_like(x)
    mask = torch.tensor([True, True, True, False, True]).view(-1, 1).expand(5, 2)

    def run(x, w, b):
        over = Masked(mask, x) if masked else BATCH
        return ops.batch_norm(x, w, b, eps=0.5, over=over, activation=activation, negative_slope=0.3)

    with nullcontext() if way == "chosen" else ops.using(way):
        plain = torch.autograd.grad(run(x, w, b), (x, w, b), g)
        by_rule = torch.autograd.grad(run(x, w, b), (x, w, b), g, create_graph=True)
        for found, right in zip(by_rule, plain, strict=True):
            close(found, right)
        assert gradgradcheck(run, (x, w, b))


def test_forward_over_reverse_without_create_graph():
    """A Hessian-vector product by dual numbers: the backward runs with grad mode off, on duals."""
    x, w, b = leaves()
    c, v = torch.randn_like(x), torch.randn_like(x)

    def loss(x):
        return (torch.tanh(ops.batch_norm(x, w, b, eps=EPS)) * c).sum()

    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x.detach(), v).requires_grad_()
        (g,) = torch.autograd.grad(loss(dual), dual)
        product = forward_ad.unpack_dual(g).tangent
    (g,) = torch.autograd.grad(loss(x), x, create_graph=True)
    (expected,) = torch.autograd.grad(g, x, v)
    close(product, expected)


@pytest.mark.parametrize("outer", [torch.func.jacfwd, torch.func.jacrev])
@pytest.mark.parametrize("inner", [torch.func.jacfwd, torch.func.jacrev])
def test_hessians_by_torch_func(outer, inner):
    x, w, b = (p.detach() for p in leaves((4, 2, 2)))
    c = torch.randn_like(x)

    def loss(batch_norm):
        return lambda x, w: (torch.tanh(batch_norm(x, w, b)) * c).sum()

    found = outer(inner(loss(lambda x, w, b: ops.batch_norm(x, w, b, eps=EPS)), (0, 1)), (0, 1))(x, w)
    plain = torch.func.hessian(loss(lambda x, w, b: rules.forward(x, w, b, EPS)[0]), (0, 1))(x, w)
    for row, right in zip(found, plain, strict=True):
        for part, value in zip(row, right, strict=True):
            close(part, value, 1e-9)


def test_third_derivative():
    x, w, b = (p.detach() for p in leaves((4, 1)))

    def along(batch_norm):
        f = lambda s: torch.tanh(batch_norm(x + s * x**2, w, b)).pow(2).sum()  # noqa: E731
        for _ in range(3):
            f = torch.func.grad(f)
        return f(torch.tensor(0.1, dtype=x.dtype))

    found = along(lambda x, w, b: ops.batch_norm(x, w, b, eps=EPS))
    close(found, along(lambda x, w, b: rules.forward(x, w, b, EPS)[0]), 1e-8)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (None, 0, 0), (1, 0, None)])
def test_vmap_is_a_loop(in_dims):
    sizes = [(6, 3, 4), (3,), (3,)]
    stacked = [
        torch.randn(s if d is None else (*s[:d], 5, *s[d:]), dtype=torch.float64)
        for s, d in zip(sizes, in_dims, strict=True)
    ]

    def run(x, w, b):
        return torch.func.grad(lambda x, w, b: ops.batch_norm(x, w, b).pow(3).sum(), (0, 1, 2))(x, w, b)

    found = torch.func.vmap(run, in_dims)(*stacked)
    for i in range(5):
        one = run(*(p if d is None else p.select(d, i) for p, d in zip(stacked, in_dims, strict=True)))
        for part, right in zip(found, one, strict=True):
            close(part[i], right)


def test_saved_tensors_cannot_be_overwritten_unnoticed():
    x, w, b = leaves()
    y = ops.batch_norm(x, w, b)
    with torch.no_grad():
        w.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        y.sum().backward()


def test_output_may_be_overwritten():
    x, w, b = leaves()
    y = torch.relu_(ops.batch_norm(x, w, b) * 1)
    z = torch.relu_(ops.batch_norm(x, w, b))
    for got, want in zip(*(torch.autograd.grad(v.square().sum(), (x, w, b)) for v in (y, z)), strict=True):
        close(got, want)


def test_reverse_over_forward():
    x, w, b = leaves()
    c, v = torch.randn_like(x), torch.randn_like(x)

    def product(batch_norm):
        with forward_ad.dual_level():
            out = torch.tanh(batch_norm(forward_ad.make_dual(x, v), w, b))
            return torch.autograd.grad((forward_ad.unpack_dual(out).tangent * c).sum(), (x, w, b))

    found = product(lambda x, w, b: ops.batch_norm(x, w, b, eps=EPS))
    expected = product(lambda x, w, b: rules.forward(x, w, b, EPS)[0])
    for part, right in zip(found, expected, strict=True):
        close(part, right)
