"""Interpolation on a logarithmic axis, on values whose answer is known."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from normscope.stats import extent, interpolate


@given(
    at=st.floats(0.011, 9.9),
    slope=st.floats(-3, 3),
    shift=st.floats(-3, 3),
)
def test_interpolation_is_exact_for_what_is_linear_in_the_logarithm(at, slope, shift):
    x = np.array([0.01, 0.1, 1.0, 10.0])
    y = shift + slope * np.log(x)
    assert interpolate(x, y, at) == pytest.approx(shift + slope * math.log(at), abs=1e-9)


def test_interpolation_does_not_reach_beyond_its_points():
    assert math.isnan(interpolate([0.1, 1.0], [1, 2], 2.0))
    assert math.isnan(interpolate([0.1, 1.0], [1, 2], 0.05))
    assert math.isnan(interpolate([math.nan, 1.0], [1, 2], 0.5))
    assert math.isnan(interpolate([0.1, 1.0], [1, 2], math.nan))
    assert interpolate([0.1, math.nan, 1.0], [1, 7, 3], 1.0) == 3


def test_interpolation_stays_on_the_rising_branch():
    """A learning rate that blows the weights up makes small updates again: another regime with the same x."""
    x, y = [0.01, 0.1, 1.0, 0.3], [0.0, 1.0, 2.0, 50.0]
    assert interpolate(x, y, 0.3) == pytest.approx(1 + math.log(3) / math.log(10))
    assert math.isnan(interpolate([0.1, 0.1, 1.0], [1, 2, 3], 0.5))


@given(low=st.floats(-1.9, -0.1), high=st.floats(0.1, 1.9), share=st.floats(0.2, 0.99))
def test_the_ends_of_an_extent_are_where_a_tent_crosses_the_share(low, high, share):
    """Two lines in log x that meet at their peak, 1 at x = 1, and cross ``share`` at planted places."""
    x = np.exp(np.array([-2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]))
    logs = np.log(x)
    y = 1 - (1 - share) * np.where(logs < 0, logs / low, logs / high)
    found = extent(x, y, share)
    assert found.low == pytest.approx(low, abs=1e-6)
    assert found.high == pytest.approx(high, abs=1e-6)
    assert not found.below
    assert not found.above


def test_an_extent_ends_at_the_first_fall_from_the_best_and_says_where_the_axis_ends_it():
    found = extent([1, 2, 4, 8, 16], [0.95, 0.1, 0.93, 1.0, 0.97], 0.9)  # what lies beyond a fall is another regime
    assert math.log(2) < found.low < math.log(4)
    assert found.high == pytest.approx(math.log(16))
    assert (found.below, found.above) == (False, True)
    alone = extent([1.0, 2.0], [0.0, 1.0], 1.0)
    assert alone.low == alone.high == pytest.approx(math.log(2))
