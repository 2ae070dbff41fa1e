"""Interpolation on a logarithmic axis, on values whose answer is known."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from normscope.stats import interpolate


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
