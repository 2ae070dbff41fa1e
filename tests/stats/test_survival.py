"""Kaplan-Meier and the restricted mean against hand-made tables, closed forms and simulation."""

import numpy as np
import pytest

from normscope._errors import DataError
from normscope.stats import kaplan_meier, restricted_mean


def test_a_table_by_hand():
    # Six runs; at 3 one of 6 arrives, at 5 one of 4 (one stopped at 4), at 8 one of 2.
    times, reached = [3, 4, 5, 5, 8, 9], [1, 0, 1, 0, 1, 0]
    steps, left = kaplan_meier(times, reached)
    assert steps.tolist() == [3, 5, 8]
    assert left == pytest.approx([5 / 6, 5 / 6 * 3 / 4, 5 / 6 * 3 / 4 / 2])
    found = restricted_mean(times, reached, 9)
    assert found.point == pytest.approx(3 + 2 * 5 / 6 + 3 * 5 / 8 + 1 * 5 / 16)
    # Greenwood, written out: sum over arrivals of (area behind)^2 d / (n (n - d)).
    areas = [2 * 5 / 6 + 3 * 5 / 8 + 5 / 16, 3 * 5 / 8 + 5 / 16, 5 / 16]
    variance = areas[0] ** 2 / 30 + areas[1] ** 2 / 12 + areas[2] ** 2 / 2
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * np.sqrt(variance), rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_without_stops_it_is_the_plain_mean_of_the_smaller(seed):
    times = np.random.default_rng(seed).integers(1, 30, 12)
    found = restricted_mean(times, np.ones(12), 20)
    assert found.point == pytest.approx(np.minimum(times, 20).mean())
    steps, left = kaplan_meier(times, np.ones(12))
    assert left == pytest.approx([(times > step).mean() for step in steps])
    # Greenwood's variance without stops is the plain one, divided by n.
    assert (found.high - found.low) / 2 == pytest.approx(1.959964 * np.minimum(times, 20).std() / np.sqrt(12), rel=1e-5)


def test_who_stops_at_the_time_of_an_arrival_was_still_at_risk():
    assert kaplan_meier([2, 2], [1, 0])[1] == pytest.approx([0.5])


def test_its_interval_covers_and_that_of_the_naive_mean_does_not():
    rng, runs = np.random.default_rng(0), 1000
    truth, covered, naive = 10 * (1 - np.exp(-1.5)), 0, 0
    for _ in range(runs):
        arrival, stop = rng.exponential(10, 60), rng.uniform(5, 40, 60)
        times, reached = np.minimum(arrival, stop), arrival <= stop
        if times.max() < 15:
            continue
        found = restricted_mean(times, reached, 15)
        covered += found.low <= truth <= found.high
        plain = np.minimum(times, 15)  # taking a stop for an arrival
        half = 1.96 * plain.std() / np.sqrt(60)
        naive += abs(plain.mean() - truth) <= half
    assert covered / runs == pytest.approx(0.94, abs=0.025)
    assert naive / runs < covered / runs - 0.05


@pytest.mark.parametrize(
    ("times", "reached", "said"),
    [([], [], "empty"), ([1, 2], [1], "shape"), ([-1, 2], [1, 1], "negative"), ([1, np.nan], [1, 1], "finite")],
)
def test_bad_times_are_refused(times, reached, said):
    with pytest.raises(DataError, match=said):
        kaplan_meier(times, reached)


def test_a_horizon_beyond_all_runs_is_refused():
    with pytest.raises(DataError, match="at most 4"):
        restricted_mean([3, 4], [1, 0], 10)
    with pytest.raises(DataError, match="positive"):
        restricted_mean([3, 4], [1, 0], 0)
    assert restricted_mean([3, 4], [1, 1], 10).point == pytest.approx(3.5)
