"""Merging parts is the same as taking them together."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from normscope.ops import Moments, merge, moments_of


def parts_of(counts, seed, offset, dtype):
    generator = torch.Generator().manual_seed(seed)
    return [(offset + torch.randn(n, 3, 2, generator=generator, dtype=torch.float64)).to(dtype) for n in counts]


def mean_of(m):
    return m.mean.double() + m.low.double()


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    seed=st.integers(0, 2**31),
    offset=st.sampled_from([0.0, 1e4, 1e6]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_merging_is_taking_together_in_any_order(counts, seed, offset, dtype):
    parts = parts_of(counts, seed, offset, dtype)
    a, b, c = map(moments_of, parts)
    whole = torch.cat(parts).double()
    m2 = (whole - whole.mean((0, 2), keepdim=True)).square().sum((0, 2))
    tolerance = 40 * torch.finfo(dtype).eps
    for merged in (merge(merge(a, b), c), merge(a, merge(b, c)), merge(c, merge(b, a))):
        assert merged.count == 2 * sum(counts)
        own = 1e-15 * offset  # of the float64 mean that is compared with
        assert (mean_of(merged) - whole.mean((0, 2))).abs().max() < 3 * tolerance + own
        torch.testing.assert_close(merged.m2.double(), m2, rtol=tolerance, atol=tolerance)


def test_many_parts_of_a_large_offset_in_float32():
    parts = parts_of([64] * 200, 1, 1e6, torch.float32)
    merged = moments_of(parts[0])
    for part in parts[1:]:
        merged = merge(merged, moments_of(part))
    whole = torch.cat(parts).double()
    assert (mean_of(merged) - whole.mean((0, 2))).abs().max() < 1e-5
    torch.testing.assert_close(merged.variance(unbiased=True).double(), whole.var((0, 2)), rtol=1e-5, atol=0)


def test_nothing_merged_changes_nothing():
    a = moments_of(torch.randn(4, 3))
    none = Moments(0, torch.full((3,), torch.nan), torch.zeros(3), torch.zeros(3))
    assert merge(a, none) is a
    assert merge(none, a) is a
    assert none.variance().isnan().all()
    assert moments_of(torch.randn(1, 3)).variance(unbiased=True).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken_in_float32(dtype):
    x = (torch.randn(1000, 3) + 5).to(dtype)
    found = moments_of(x)
    assert found.m2.dtype == torch.float32
    torch.testing.assert_close(found.variance(unbiased=True).double(), x.double().var(0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(9, 3), (9, 3, 4), (5, 3, 2, 2)])
def test_using_the_values_up_changes_no_moment(shape):
    x = 1e6 + torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept, used = moments_of(x), moments_of(x.clone(), overwrite=True)
    assert used.count == kept.count
    assert torch.equal(mean_of(used), mean_of(kept))
    torch.testing.assert_close(used.m2, kept.m2, rtol=1e-14, atol=0)
