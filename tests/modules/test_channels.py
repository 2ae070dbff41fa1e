"""Moments by channel against NumPy in float64, whatever the layout, the type and the offset; and laws of helpers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from normscope.modules.channels import (
    channels,
    coprime_stride,
    ever_positive,
    in_memory_order,
    row_products,
    to_floats,
    to_host,
)

LARGE = (7, 3, 300, 300)  # a sample is about 1 MB of float32, so several pieces are read


def drawn(shape, dtype=torch.float64, offset=0.0, seed=0):
    spread = torch.tensor([1.0, 0.1, 30.0], dtype=torch.float64).view(-1, *[1] * (len(shape) - 2))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (offset + spread * values).to(dtype)


def by_channel(x):
    """Return the values ``(C, N, P)`` in float64."""
    return x.double().numpy().reshape(*x.shape[:2], -1).transpose(1, 0, 2)


SHAPES = [(8, 3), (8, 3, 1), (8, 3, 5), (6, 3, 4, 5), (2, 3, 2, 3, 4)]
TYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.mark.parametrize(
    ("shape", "dtype"), [*((shape, dtype) for shape in SHAPES for dtype in TYPES), (LARGE, torch.float32)], ids=str
)
@pytest.mark.parametrize("offset", [0.0, -3.0, 1e4])
def test_moments_are_those_of_numpy(shape, offset, dtype):
    x = drawn(shape, dtype, offset)
    values, found = by_channel(x), channels(x)
    precise = 1e-11 if dtype == torch.float64 else 5e-4  # up to 1,000 times rounding, where squares are about zero
    deviations = values - values.mean((1, 2), keepdims=True)
    spread = values.std((1, 2))
    assert (found.positions, found.count) == (values.shape[2], values.shape[1] * values.shape[2])
    np.testing.assert_allclose(found.mean.double(), values.mean((1, 2)), rtol=3e-7, atol=precise * spread.max())
    np.testing.assert_allclose(found.variance.double(), spread**2, rtol=precise)
    sums, squares = (t.double().numpy() for t in found.deviations())
    scale = spread * values.shape[2] ** 0.5
    assert (np.abs(sums - deviations.sum(2).T) <= 30 * precise * scale * (1 + values.shape[2] ** 0.5)).all()
    np.testing.assert_allclose(squares.sum(0), (deviations**2).sum((1, 2)), rtol=precise)


@pytest.mark.parametrize("shape", [(8, 3), (6, 3, 5), LARGE])
@pytest.mark.parametrize("offset", [0.5, 1e4])
def test_inner_products_are_with_the_deviations(shape, offset):
    x, other = drawn(shape, offset=offset), drawn(shape, offset=0.2, seed=1)
    values, others = by_channel(x), by_channel(other)
    total, squares, product = (t.double().numpy() for t in channels(x).inner(other))
    np.testing.assert_allclose(total, others.sum((1, 2)), rtol=1e-9)
    np.testing.assert_allclose(squares, (others**2).sum((1, 2)), rtol=1e-9)
    deviations = values - values.mean((1, 2), keepdims=True)
    size = np.sqrt((others**2).sum((1, 2)) * (deviations**2).sum((1, 2)))
    assert (np.abs(product - (others * deviations).sum((1, 2))) < 1e-9 * size).all()


@pytest.mark.parametrize("shape", [(2, 6), (9, 6), (9, 6, 5), (64, 6, 3, 3)])
@pytest.mark.parametrize("axis", [1, -1, 0])
def test_a_unit_is_ever_positive_if_its_largest_value_is(shape, axis):
    axis %= len(shape)
    units = -torch.randn(shape, generator=torch.Generator().manual_seed(0)).abs().movedim(axis, 0)
    flat = units.flatten(1)
    for unit, (place, value) in enumerate([(0, 1.0), (-1, 1e-30), (-1, torch.nan), (0, torch.nan), (0, 0.0)]):
        if unit < len(flat):
            flat[unit, place] = value
    x = flat.reshape(units.shape).movedim(0, axis)
    expected = [bool((row > 0).any() or row.isnan().any()) for row in flat]
    assert ever_positive(x, axis).tolist() == expected
    assert {True, False} == set(expected) or len(flat) < 5


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_shows_in_its_channel_alone(value):
    x = drawn((6, 3, 4))
    x[2, 1, 3] = value
    found = channels(x)
    assert found.mean.isfinite().tolist() == [True, False, True]
    assert found.variance.isfinite().tolist() == [True, False, True]


def test_row_products_are_along_the_last_axis():
    a, b = drawn((4, 3, 5)), drawn((4, 3, 5), seed=2)
    torch.testing.assert_close(row_products(a, b), (a * b).sum(-1))


def test_numbers_come_to_the_host_in_their_shapes():
    tensors = [torch.arange(6.0).view(2, 3), torch.tensor(7), torch.tensor([0.5, -2.0]).bfloat16(), torch.zeros(0)]
    found = to_host(tensors)
    assert [array.dtype for array in found] == [np.float64] * 4
    assert [array.tolist() for array in found] == [[[0, 1, 2], [3, 4, 5]], 7, [0.5, -2], []]
    assert to_floats([torch.tensor(2.5), 3, torch.tensor([True])]) == [2.5, 3.0, 1.0]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_dense_memory_is_flattened_without_a_copy(layout):
    x = torch.arange(120.0).view(2, 3, 4, 5).contiguous(memory_format=layout)
    flat = in_memory_order(x)
    assert flat.data_ptr() == x.data_ptr()
    assert torch.equal(flat.sort().values, torch.arange(120.0))
    assert torch.equal(in_memory_order(x[:, 1]).sort().values, x[:, 1].reshape(-1).sort().values)


@settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 5000), sample=st.integers(1, 300))
def test_a_coprime_stride_is_the_smallest_that_leaves_few_and_meets_all(count, sample):
    stride = coprime_stride(count, sample)
    fits = [s for s in range(1, stride + 1) if math.ceil(count / s) <= sample and math.gcd(s, count) == 1]
    assert fits == [stride]
