"""Running statistics: shares, selection, precision, and micro-batches that wait."""

import pytest
import torch
from hypothesis import given, settings, strategies as st

from normscope.ops import Moments, moments_of
from normscope.ops.track import accumulate, count_batch, is_sound, share_of_batch, track

F64 = torch.float64


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64) + 0.7


def test_shares_make_a_plain_average_without_a_momentum():
    values, count = drawn(5, 3), torch.zeros((), dtype=torch.int64)
    mean, var = drawn(3, seed=1), drawn(3, seed=2)
    for batch in values:
        track(mean, var, batch, 2 * batch, share_of_batch(None, count))
        count_batch(count)
    torch.testing.assert_close(mean, values.sum(0) / 5)
    torch.testing.assert_close(var, 2 * values.sum(0) / 5)
    assert share_of_batch(0.3, None) == share_of_batch(0.3, count) == 0.3
    assert share_of_batch(None, None) == 0.0
    count_batch(None)


@settings(deadline=None, max_examples=20)
@given(momentum=st.floats(0.01, 0.99), as_tensor=st.booleans(), moves=st.sampled_from([True, False, None]))
def test_the_share_is_that_of_the_batch(momentum, as_tensor, moves):
    mean, var, batch_mean, batch_var = drawn(4, 3).unbind()
    right = (1 - momentum) * mean + momentum * batch_mean, (1 - momentum) * var + momentum * batch_var
    if moves is False:
        right = mean.clone(), var.clone()
    where = True if moves is None else torch.tensor(moves)
    track(mean, var, batch_mean, batch_var, torch.tensor(momentum, dtype=F64) if as_tensor else momentum, where)
    torch.testing.assert_close((mean, var), right)


def test_what_is_not_selected_may_be_nan_and_either_statistic_may_be_missing():
    mean, nan = drawn(3), torch.full((3,), torch.nan, dtype=F64)
    before = mean.clone()
    track(mean, None, nan, nan, 0.1, torch.tensor(False))
    assert torch.equal(mean, before)
    track(None, mean, nan, before + 1, 0.25)
    torch.testing.assert_close(mean, before + 0.25)


def test_a_narrow_statistic_is_moved_in_the_wide_type_and_rounded_once():
    running = torch.full((3,), 1.0, dtype=torch.bfloat16)
    track(running, None, torch.full((3,), 3.0), torch.ones(3), 0.3)
    assert torch.equal(running, torch.full((3,), 0.7 + 0.9).to(torch.bfloat16))


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_micro_batches_of_any_sizes_are_their_union(sizes, seed):
    parts = [drawn(n, 3, seed=seed + i) for i, n in enumerate(sizes)]
    pending = torch.zeros(5, 3, dtype=F64)
    for at, part in enumerate(parts, 1):
        merged, full = accumulate(pending, moments_of(part), len(parts), True)
        assert bool(full) is (at == len(parts))
        assert bool(pending.any()) is not bool(full)
    whole = torch.cat(parts)
    torch.testing.assert_close(merged.mean + merged.low, whole.mean(0))
    torch.testing.assert_close(merged.m2, (whole - whole.mean(0)).square().sum(0))
    assert float(torch.as_tensor(merged.count).max()) == sum(sizes)


def test_a_micro_batch_that_does_not_count_leaves_those_that_wait():
    pending = torch.zeros(5, 3, dtype=F64)
    accumulate(pending, moments_of(drawn(4, 3)), 2, True)
    before = pending.clone()
    _, full = accumulate(pending, moments_of(drawn(4, 3, seed=1)), 2, torch.tensor(False))
    assert not full
    assert torch.equal(pending, before)


@pytest.mark.parametrize(
    ("count", "mean", "low", "m2", "sound"),
    [
        (2, 0.0, 0.0, 1.0, True),
        (1, 0.0, 0.0, 1.0, False),
        (2, torch.inf, 0.0, 1.0, False),
        (2, 0.0, torch.nan, 1.0, False),
        (2, 0.0, 0.0, torch.nan, False),
        (torch.tensor([2.0, 2.0]), 0.0, 0.0, 1.0, True),
        (torch.tensor([2.0, 1.0]), 0.0, 0.0, 1.0, False),
    ],
)
def test_what_is_fit_to_be_remembered(count, mean, low, m2, sound):
    rows = (torch.tensor([0.5, value]) for value in (mean, low, m2))
    assert bool(is_sound(Moments(count, *rows))) is sound
