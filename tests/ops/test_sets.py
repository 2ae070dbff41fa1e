"""Every statistics set: derivatives of all kinds, and what it is by definition."""

import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.autograd import gradcheck, gradgradcheck

from normscope import ops
from normscope._errors import UsageError
from normscope.ops.sets import BATCH, Masked, Renorm, ghost, mask_of_lengths

EPS = 1e-3
F64 = torch.float64

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:DeprecationWarning")


def mask_like(x):
    shape = (x.shape[0], *x.shape[2:])
    if shape not in MASKS:
        MASKS[shape] = torch.rand(shape, generator=torch.Generator().manual_seed(1)) > 0.35
    return MASKS[shape]


MASKS = {}  # drawn once: vmap lets nothing be drawn


MEAN, VAR = torch.linspace(-1, 1, 3, dtype=F64), torch.linspace(0.5, 2, 3, dtype=F64)
# Far enough on for both corrections to act, and their bounds to cut some channels and not others.
RENORM, STEP = Renorm(1.4, 0.5, (0, 10), (0, 10)), torch.tensor(7)

SETS = {
    "batch": lambda x, w, b: ops.normalize(x, w, b, EPS)[0],
    "masked": lambda x, w, b: ops.batch_norm(x, w, b, eps=EPS, over=Masked(mask_like(x), x)),
    "ghost": lambda x, w, b: ops.ghost_batch_norm(x, w, b, group_size=3, eps=EPS)[0],
    "ghost-uneven": lambda x, w, b: ops.ghost_batch_norm(x, w, b, group_size=4, eps=EPS)[0],
    "ghost-masked": lambda x, w, b: ops.ghost_batch_norm(x, w, b, group_size=3, eps=EPS, mask=mask_like(x))[0],
    "renorm": lambda x, w, b: ops.batch_renorm(x, w, b, MEAN, VAR, STEP, renorm=RENORM, eps=EPS)[0],
    "population": lambda x, w, b: ops.batch_norm_given(x, x[:2].mean((0, 2)), x[:3].var((0, 2)), w, b, eps=EPS),
    "moments": lambda x, w, b: (lambda m: (m.mean + m.low) * w + m.variance() * b)(ops.moments_of(x)),
    "moments-masked": lambda x, w, b: (lambda m: (m.mean + m.low) * w + m.variance() * b)(
        Masked(mask_like(x), x).moments(x)
    ),
}


def leaves(shape=(6, 3, 4)):
    return [torch.randn(s, dtype=F64, requires_grad=True) for s in (shape, shape[1:2], shape[1:2])]


@pytest.mark.parametrize("run", SETS.values(), ids=SETS)
def test_first_derivatives_by_finite_differences(run):
    if run is SETS["renorm"]:
        run = constant_correction(run)
    assert gradcheck(run, leaves(), check_forward_ad=True, check_batched_grad=True)


@pytest.mark.parametrize("run", SETS.values(), ids=SETS)
def test_second_derivatives_by_finite_differences(run):
    if run is SETS["renorm"]:
        run = constant_correction(run)
    assert gradgradcheck(run, leaves((6, 3, 2)), check_fwd_over_rev=True, check_rev_over_rev=True)


def constant_correction(run):
    """Renormalization stops the gradient at r and d: so must the finite differences, at the point of the check."""
    fixed = {}

    def constant(self, *args):
        return fixed.setdefault("r, d", found(self, *args))

    found = Renorm.correction

    def run_fixed(x, w, b):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Renorm, "correction", constant)
            return run(x, w, b)

    return run_fixed


@pytest.mark.parametrize("run", SETS.values(), ids=SETS)
def test_torch_func(run):
    x, w, b = (p.detach() for p in leaves())
    c, t = torch.randn_like(run(x, w, b)), torch.randn_like(x)

    def loss(x):
        return (torch.tanh(run(x, w, b)) * c).sum()

    leaf = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (hv,) = torch.autograd.grad(g, leaf, t)
    torch.testing.assert_close(torch.func.grad(loss)(x), g.detach())
    torch.testing.assert_close(torch.func.jvp(torch.func.grad(loss), (x,), (t,))[1], hv)
    torch.testing.assert_close(torch.func.grad(lambda x: torch.func.jvp(loss, (x,), (t,))[1])(x), hv)
    stacked = torch.func.vmap(run, (0, None, None))(torch.stack([x, t]), w, b)
    for found, one in zip(stacked, (x, t), strict=True):
        torch.testing.assert_close(found, run(one, w, b))


def test_masked_is_the_batch_of_what_is_left():
    x, w, b = leaves()
    mask = mask_like(x)
    g = torch.randn_like(x)
    y = ops.batch_norm(x, w, b, eps=EPS, over=Masked(mask, x))
    left = x.detach().movedim(1, -1)[mask].requires_grad_()
    right = ops.batch_norm(left, w, b, eps=EPS)
    torch.testing.assert_close(y.movedim(1, -1)[mask], right)
    assert (y.movedim(1, -1)[~mask] == 0).all()
    found = torch.autograd.grad(y, (x, w, b), g)
    expected = torch.autograd.grad(right, (left, w, b), g.movedim(1, -1)[mask])
    torch.testing.assert_close(found[0].movedim(1, -1)[mask], expected[0])
    assert (found[0].movedim(1, -1)[~mask] == 0).all()
    torch.testing.assert_close(found[1:], expected[1:])


def test_running_statistics_over_a_mask_are_those_of_what_is_left():
    x = leaves()[0].detach()
    mask = mask_like(x)
    mean, var = MEAN.clone(), VAR.clone()
    seen = torch.tensor(4)
    over = Masked(mask, x)
    ops.batch_norm(x, running_mean=mean, running_var=var, momentum=0.3, over=over, num_batches_tracked=seen)
    left = x.movedim(1, -1)[mask]
    torch.testing.assert_close(mean, 0.7 * MEAN + 0.3 * left.mean(0))
    torch.testing.assert_close(var, 0.7 * VAR + 0.3 * left.var(0))  # unbiased, as torch tracks it
    assert seen == 5


def test_what_is_masked_may_be_anything():
    x, w, b = (p.detach() for p in leaves())
    mask = mask_like(x)
    mean, var = torch.zeros(2, 3, dtype=F64)
    clean = ops.batch_norm(x, w, b, over=Masked(mask, x))
    for padding in (torch.nan, torch.inf, 1e300):
        dirty = torch.where(mask.unsqueeze(1), x, padding).requires_grad_()
        y = ops.batch_norm(dirty, w, b, running_mean=mean, running_var=var, over=Masked(mask, dirty))
        torch.testing.assert_close(y, clean, rtol=0, atol=0)
        y.square().sum().backward()
        assert dirty.grad.isfinite().all()
        assert mean.isfinite().all()
        assert var.isfinite().all()


@pytest.mark.parametrize("shape", [(6, 4), (6, 1, 4), (6, 3, 4)])
def test_masks_of_all_shapes(shape):
    x = leaves()[0].detach()
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) > 0.4
    full = (mask.unsqueeze(1) if mask.ndim == 2 else mask).expand(x.shape)
    y = ops.batch_norm(x, over=Masked(mask, x))
    for channel in range(3):
        values = x[:, channel][full[:, channel]]
        right = (values - values.mean()) / (values.var(correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(y[:, channel][full[:, channel]], right)


def test_lengths_are_masks():
    x = torch.randn(3, 2, 5)
    lengths = torch.tensor([5, 0, 2])
    assert mask_of_lengths(lengths, x).squeeze(1).sum(1).tolist() == [5, 0, 2]
    image = torch.randn(3, 2, 4, 5)
    assert mask_of_lengths(lengths, image).sum((1, 2, 3)).tolist() == [20, 0, 8]
    with pytest.raises(UsageError, match="whole number"):
        mask_of_lengths(torch.ones(3), x)
    with pytest.raises(UsageError, match="positions"):
        mask_of_lengths(lengths, torch.randn(3, 2))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(6, 4), "boolean"),
        (torch.ones(6, 2, 4, dtype=torch.bool), "second axis"),
        (torch.ones(5, 4, dtype=torch.bool), "second axis"),
        (torch.ones(6, dtype=torch.bool), "second axis"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask, message):
    with pytest.raises(UsageError, match=message):
        Masked(mask, torch.randn(6, 3, 4))


@pytest.mark.parametrize("offset", [0.0, 1e4, 1e6])
def test_masked_moments_with_an_offset(offset):
    x = offset + torch.randn(200, 3, 20)
    mask = mask_like(x)
    found = Masked(mask, x).moments(x)
    left = x.movedim(1, -1)[mask].double()
    assert (found.mean.double() + found.low - left.mean(0)).abs().max() < 1e-5
    torch.testing.assert_close(found.variance(unbiased=True).double(), left.var(0), rtol=1e-5, atol=0)
    y = ops.batch_norm(x, over=Masked(mask, x))
    right = ops.batch_norm(left)
    assert (y.movedim(1, -1)[mask] - right).abs().max() < 1e-5


# Ghost batches.


@pytest.mark.parametrize(
    ("samples", "size", "positions", "sizes"),
    [(8, 4, 1, [4, 4]), (8, 3, 1, [3, 3, 2]), (7, 3, 1, [3, 4]), (7, 3, 2, [3, 3, 1]), (4, 3, 1, [4]), (2, 5, 1, [2])],
)
@pytest.mark.parametrize("masked", [False, True])
def test_ghost_batches_are_batches(samples, size, positions, sizes, masked):
    x = torch.randn(samples, 3, positions, dtype=F64)
    w, b = torch.randn(2, 3, dtype=F64)
    mask = mask_like(x) if masked else None
    y, moments = ops.ghost_batch_norm(x, w, b, group_size=size, mask=mask)
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    assert ends[-1] == samples
    for start, end in itertools.pairwise(ends):
        over = BATCH if mask is None else Masked(mask[start:end], x[start:end])
        torch.testing.assert_close(y[start:end], ops.normalize(x[start:end], w, b, 1e-5, over)[0])
    whole = (BATCH if mask is None else Masked(mask, x)).moments(x)
    torch.testing.assert_close(moments.mean + moments.low, whole.mean + whole.low)
    torch.testing.assert_close(moments.variance(), whole.variance())


@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_folding_is_undone(format):
    x = torch.randn(12, 3, 4, 5).contiguous(memory_format=format)
    for groups in (1, 2, 6):
        folded = ghost.fold(x, groups)
        assert folded.shape == (12 // groups, 3 * groups, 4, 5)
        assert torch.equal(ghost.unfold(folded, groups), x)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 9), more=st.integers(0, 3), channels=st.integers(1, 4), seed=st.integers(0, 2**31))
def test_one_group_is_the_batch_and_a_mask_of_ones_too(n, more, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    x, g = (torch.randn(n, channels, 3, generator=generator, dtype=F64) for _ in range(2))
    w, b = torch.randn(2, channels, generator=generator, dtype=F64)
    results = []
    for run in (
        lambda x: ops.normalize(x, w, b, EPS),
        lambda x: ops.ghost_batch_norm(x, w, b, group_size=n + more, eps=EPS),
        lambda x: ops.normalize(x, w, b, EPS, Masked(torch.ones(n, 3, dtype=torch.bool), x)),
    ):
        leaf = x.clone().requires_grad_()
        y, m = run(leaf)
        results.append((y, m.mean + m.low, m.variance(), *torch.autograd.grad(y, leaf, g)))
    for found in results[1:]:
        torch.testing.assert_close(found, results[0])


# Renormalization.


def test_renorm_by_its_formula():
    x, w, b = (p.detach() for p in leaves((16, 3, 4)))
    x = x * torch.tensor([0.5, 1.0, 5.0]).view(-1, 1)
    y, _ = ops.batch_renorm(x, w, b, MEAN, VAR, STEP, renorm=RENORM, eps=EPS)
    r_max, d_max = (float(v) for v in RENORM.bounds(STEP))
    assert (r_max, d_max) == pytest.approx((1.28, 0.35))
    std, running = (x.var((0, 2), correction=0) + EPS).sqrt(), (VAR + EPS).sqrt()
    r = (std / running).clamp(1 / r_max, r_max)
    d = ((x.mean((0, 2)) - MEAN) / running).clamp(-d_max, d_max)
    assert 0 < (r != std / running).sum() < 3 or 0 < (d.abs() == d_max).sum() < 3  # the bounds cut somewhere, not all
    right = ((x - x.mean((0, 2)).view(-1, 1)) / std.view(-1, 1)) * r.view(-1, 1) + d.view(-1, 1)
    torch.testing.assert_close(y, right * w.view(-1, 1) + b.view(-1, 1), rtol=1e-6, atol=1e-6)


def test_renorm_without_bounds_is_evaluation():
    x, w, b = (p.detach() for p in leaves((16, 3, 4)))
    free = Renorm(1e6, 1e6, (0, 0), (0, 0))
    y, _ = ops.batch_renorm(x, w, b, MEAN, VAR, STEP, renorm=free, eps=EPS)
    torch.testing.assert_close(y, ops.batch_norm_given(x, MEAN, VAR, w, b, eps=EPS))


@given(step=st.integers(0, 200_000))
def test_the_schedule_never_exceeds_its_bounds(step):
    r_max, d_max = (float(v) for v in Renorm().bounds(torch.tensor(step)))
    assert 1 <= r_max <= 3
    assert 0 <= d_max <= 5
    assert r_max == pytest.approx(1 + 2 * min(max((step - 5_000) / 35_000, 0), 1), abs=1e-5)
    assert d_max == pytest.approx(5 * min(max((step - 5_000) / 20_000, 0), 1), abs=1e-5)


@pytest.mark.parametrize("wrong", [{"r_max": 0.5}, {"d_max": -1.0}, {"r_steps": (5, 4)}, {"d_steps": (-1, 4)}])
def test_bounds_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError):
        Renorm(**wrong)


# Merging many.


@settings(deadline=None, max_examples=30)
@given(parts=st.integers(1, 9), seed=st.integers(0, 2**31), offset=st.sampled_from([0.0, 1e4]), even=st.booleans())
def test_merging_all_is_merging_one_by_one(parts, seed, offset, even):
    generator = torch.Generator().manual_seed(seed)
    sizes = [3] * parts if even else torch.randint(0, 5, (parts,), generator=generator).tolist()
    sizes[0] = max(sizes[0], 1)
    pieces = [offset + torch.randn(n, 2, generator=generator, dtype=F64) for n in sizes]
    moments = [ops.moments_of(p) if len(p) else ops.Moments(0, *torch.zeros(3, 2, dtype=F64)) for p in pieces]
    count = 3 if even else torch.tensor(sizes, dtype=F64).unsqueeze(1)
    stacked = ops.Moments(count, *(torch.stack([getattr(m, f) for m in moments]) for f in ("mean", "low", "m2")))
    found, whole = ops.merge_all(stacked), ops.moments_of(torch.cat(pieces))
    assert int(torch.as_tensor(found.count).max()) == sum(sizes)
    torch.testing.assert_close(found.mean + found.low, whole.mean + whole.low)
    torch.testing.assert_close(found.m2, whole.m2, atol=1e-9, rtol=1e-9)


def test_averages_that_forget_the_count_are_caught():
    """Plain averaging of parts, as replicas are often merged, misses the variance between them."""
    parts = [torch.randn(50, 1, dtype=F64), 3 + torch.randn(10, 1, dtype=F64)]
    whole = torch.cat(parts).var(0, correction=0)
    a, b = (ops.moments_of(p) for p in parts)
    torch.testing.assert_close(ops.merge(a, b).variance(), whole)
    assert (whole - (a.variance() + b.variance()) / 2).abs() > 1
