"""Intervals: against closed forms and SciPy, by simulated coverage, and by the laws they obey."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st
from scipy import stats as scipy_stats

from normscope._errors import DataError, UsageError
from normscope.records import Estimate
from normscope.stats import censor, interval, paired_interval, proportional, ratio_interval, slope_per_seed
from normscope.stats.intervals import SKEWED, WIDER, bootstrap, hall_ends, hall_p

# Sixteenths: sums of these are exact, so that a law fails for its own reason and never for rounding.
SIXTEENTHS = st.integers(-800, 800).map(lambda k: k / 16)
SEEDS = st.lists(SIXTEENTHS, min_size=2, max_size=14)
POSITIVE = st.lists(st.tuples(*[st.integers(1, 4000).map(lambda k: k / 16)] * 2), min_size=2, max_size=14)
METHODS = st.sampled_from(["auto", "t", "bca"])
FEW = {"draws": 500}


def close(a: Estimate, low: float, high: float, scale: float = 1.0) -> bool:
    return np.allclose([a.low, a.high], [low, high], rtol=1e-9, atol=1e-9 * scale)


# -- closed forms and other implementations


@pytest.mark.parametrize("n", [2, 5, 30])
def test_t_is_student(n: int) -> None:
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=n), rng.normal(size=n)
    ours = paired_interval(a, b, scale="difference", method="t", level=0.9)
    theirs = scipy_stats.ttest_rel(a, b).confidence_interval(0.9)
    assert close(ours, theirs.low, theirs.high)
    assert ours.point == pytest.approx((a - b).mean())
    assert (ours.n, ours.method, ours.scale, ours.level) == (n, "paired t", "difference", 0.9)


def test_t_by_hand() -> None:
    # mean 2, s = 1, n = 3, t(.975, 2) = 4.302653
    ours = interval([1.0, 2.0, 3.0], method="t")
    assert close(ours, 2 - 4.302652729911275 / math.sqrt(3), 2 + 4.302652729911275 / math.sqrt(3))


@pytest.mark.parametrize("draw", ["normal", "lognormal", "exponential"])
@pytest.mark.parametrize("n", [6, 20])
def test_bca_is_scipys(draw: str, n: int) -> None:
    values = getattr(np.random.default_rng(n), draw)(size=n)
    ours = interval(values, method="bca", draws=40_000)
    found = scipy_stats.bootstrap((values,), np.mean, method="BCa", n_resamples=40_000, rng=np.random.default_rng(1))
    theirs = found.confidence_interval
    width = theirs.high - theirs.low
    # The Monte-Carlo error of an end is about 0.4 % of the width in each of the two.
    assert abs(ours.low - theirs.low) < 0.025 * width
    assert abs(ours.high - theirs.high) < 0.025 * width


def test_acceleration_is_the_jackknifes() -> None:
    values = np.random.default_rng(0).exponential(size=9)
    left_out = np.array([np.delete(values, k).mean() for k in range(values.size)])
    away = left_out.mean() - left_out
    assert bootstrap(values, draws=50).acceleration == pytest.approx((away**3).sum() / 6 / (away**2).sum() ** 1.5)


def test_bootstrap_means_have_the_exact_moments() -> None:
    values = np.random.default_rng(3).exponential(size=7)
    means = bootstrap(values, draws=200_000).means
    assert means.mean() == pytest.approx(values.mean(), rel=5e-3)
    assert means.var() == pytest.approx(values.var() / 7, rel=2e-2)


@given(SEEDS, st.floats(0.01, 0.99))
@settings(max_examples=50, deadline=None)
def test_bootstrap_probability_inverts_quantile(values: list[float], probability: float) -> None:
    assume(len(set(values)) > 1)
    resampled = bootstrap(np.array(values), draws=400)
    end = resampled.quantile(probability)
    assert resampled.quantile(resampled.probability(end)) == pytest.approx(end, abs=1e-6 * np.ptp(values))


# -- coverage


def coverage(make, draw, truth: float, n: int, runs: int) -> tuple[float, float, float]:
    """Return the share of intervals that hold the truth, that lie above it, and that lie below it."""
    rng = np.random.default_rng(20)
    found = [make(draw(rng, n)) for _ in range(runs)]
    above = sum(low > truth for low, _ in found) / runs
    below = sum(high < truth for _, high in found) / runs
    return 1 - above - below, above, below


def assert_coverage(make, draw, truth: float, n: int, runs: int, low: float, high: float) -> None:
    """Demand a coverage in [low, high], widened by four binomial standard errors."""
    share, above, below = coverage(make, draw, truth, n, runs)
    slack = 4 * math.sqrt(0.95 * 0.05 / runs)
    assert low - slack <= share <= high + slack, f"coverage {share:.4f} (above {above:.4f}, below {below:.4f})"


def ends(**options):
    def make(values):
        found = interval(values, **options)
        return found.low, found.high

    return make


def percentile(level: float):
    def make(values):
        return tuple(np.quantile(bootstrap(values, draws=1000).means, [(1 - level) / 2, (1 + level) / 2]))

    return make


def normal(rng, n):
    return rng.normal(size=n)


def lognormal(rng, n):
    return rng.lognormal(size=n)


def test_t_covers_normal_values() -> None:
    assert_coverage(ends(method="t"), normal, 0.0, 10, 4000, 0.95, 0.95)


@pytest.mark.parametrize("n", [3, 10])
def test_auto_covers_normal_values(n: int) -> None:
    assert_coverage(ends(draws=1000), normal, 0.0, n, 2000, 0.95, 0.97)


def test_bca_on_skewed_values() -> None:
    # Log-normal, n = 20: too few for second-order accuracy. Measured over 10,000 samples 0.874 (2.4 % above the truth,
    # 10.2 % below); Student's 0.867 (0.2 %, 13.1 %).
    assert_coverage(ends(method="bca", draws=1000), lognormal, math.exp(0.5), 20, 2000, 0.86, 0.89)
    _, above_bca, _ = coverage(ends(method="bca", draws=1000), lognormal, math.exp(0.5), 20, 1000)
    _, above_t, _ = coverage(ends(method="t"), lognormal, math.exp(0.5), 20, 1000)
    assert abs(above_bca - 0.025) < abs(above_t - 0.025)


def test_auto_covers_skewed_values_at_least_as_often() -> None:
    share, _, _ = coverage(ends(draws=1000), lognormal, math.exp(0.5), 20, 1000)
    alone, _, _ = coverage(ends(draws=1000, method="bca"), lognormal, math.exp(0.5), 20, 1000)
    assert share >= alone


@pytest.mark.parametrize("level", [0.8, 0.99])
def test_coverage_check_catches_a_wrong_interval(level: float) -> None:
    assert_coverage(percentile(0.95), normal, 0.0, 40, 1000, 0.93, 0.95)
    with pytest.raises(AssertionError, match="coverage"):
        assert_coverage(percentile(level), normal, 0.0, 40, 1000, 0.93, 0.95)


def test_fieller_covers() -> None:
    def draw(rng, n):
        return np.stack([rng.normal(1.4, 1, n), rng.normal(2, 1, n)])

    def make(pair):
        found = ratio_interval(pair[0], pair[1])
        return found.low, found.high

    assert_coverage(make, draw, 0.7, 10, 4000, 0.95, 0.95)


# -- laws


@given(SEEDS, METHODS, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_of_seeds_does_not_matter(values, method, random) -> None:
    shuffled = random.sample(values, len(values))
    assert interval(values, method=method, **FEW) == interval(shuffled, method=method, **FEW)


@given(POSITIVE, METHODS, st.sampled_from(["difference", "log-ratio"]))
@settings(max_examples=60, deadline=None)
def test_swapped_arms_negate(pairs, method, scale) -> None:
    a, b = np.array(pairs).T
    there = paired_interval(a, b, scale=scale, method=method, **FEW)
    back = paired_interval(b, a, scale=scale, method=method, **FEW)
    assert close(back, -there.high, -there.low, 1000)
    assert back.point == pytest.approx(-there.point, abs=1e-9)


@given(POSITIVE, METHODS, SIXTEENTHS)
@settings(max_examples=60, deadline=None)
def test_difference_ignores_a_common_shift(pairs, method, shift) -> None:
    a, b = np.array(pairs).T
    plain = paired_interval(a, b, scale="difference", method=method, **FEW)
    assert plain == paired_interval(a + shift, b + shift, scale="difference", method=method, **FEW)


@given(POSITIVE, METHODS, st.floats(1e-3, 1e3))
@settings(max_examples=60, deadline=None)
def test_log_ratio_ignores_a_common_scale(pairs, method, factor) -> None:
    a, b = np.array(pairs).T
    plain = paired_interval(a, b, method=method, **FEW)
    scaled = paired_interval(a * factor, b * factor, method=method, **FEW)
    # Rounding may part values that were tied, which moves Efron's bias by up to a tie's weight.
    assert np.allclose([plain.low, plain.high], [scaled.low, scaled.high], atol=0.15 * (plain.high - plain.low) + 1e-9)
    assert plain.point == pytest.approx(scaled.point, abs=1e-9)


@given(SEEDS, METHODS)
@settings(max_examples=60, deadline=None)
def test_point_lies_in_its_interval_and_level_widens(values, method) -> None:
    narrow = interval(values, method=method, level=0.8, **FEW)
    wide = interval(values, method=method, level=0.95, **FEW)
    assert wide.low <= narrow.low <= narrow.high <= wide.high
    assert wide.low <= wide.point <= wide.high


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_auto_holds_both(values) -> None:
    methods = ("auto", "t", "bca")
    auto, t, bca = (interval(values, scale="difference", method=method, **FEW) for method in methods)
    assert auto.low <= t.low
    assert auto.high >= t.high
    if auto.method == WIDER:
        assert (auto.low, auto.high) == (min(t.low, bca.low), max(t.high, bca.high))
    alone = interval(values, **FEW)
    assert alone.low <= auto.low
    assert alone.high >= auto.high


def test_auto_trusts_t_alone_for_ten_normal_values_only() -> None:
    quantiles = scipy_stats.norm.ppf((np.arange(10) + 0.5) / 10)
    for values, compared, alone in (
        (quantiles, "paired t", SKEWED[0]),
        (quantiles[:9], WIDER, SKEWED[1]),
        (np.exp(3 * quantiles), WIDER, SKEWED[1]),
    ):
        assert interval(values, scale="difference").method == compared
        assert interval(values).method == alone
    # Symmetric values have no skewness to be taken out.
    assert close(interval(quantiles), *hall_ends(quantiles, 0.95))
    student = interval(quantiles, method="t")
    assert close(interval(quantiles), student.low, student.high)


def hall(values: np.ndarray, mean: float) -> float:
    """Hall's transformed statistic as his paper writes it, to be compared with a quantile of t."""
    n, skewness = values.size, float(scipy_stats.skew(values))
    w = (values.mean() - mean) / values.std(ddof=1)
    return math.sqrt(n) * (w + skewness / 3 * w**2 + skewness**2 / 27 * w**3 + skewness / (6 * n))


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_halls_ends_solve_his_equation(values) -> None:
    array = np.array(values)
    assume(np.ptp(array) > 0)
    quantile = scipy_stats.t.ppf(0.95, array.size - 1)
    low, high = hall_ends(array, 0.9)
    assert hall(array, low) == pytest.approx(quantile, rel=1e-6)
    assert hall(array, high) == pytest.approx(-quantile, rel=1e-6)
    p = hall_p(array, low)
    if low < array.mean():
        assert p == pytest.approx(0.1, rel=1e-6)
    mirrored = hall_ends(-array, 0.9)
    assert mirrored == pytest.approx((-high, -low))


def missed(runs: int = 1500, **options) -> float:
    """Return the share of intervals of ten exponential values that end short of the truth."""
    rng = np.random.default_rng(4)
    return sum(interval(rng.exponential(size=10), draws=400, **options).high < 1 for _ in range(runs)) / runs


def test_skewed_values_of_one_arm_are_missed_half_as_often_with_halls_ends() -> None:
    student, compared, alone = missed(method="t"), missed(scale="difference"), missed()
    assert alone < 0.065
    assert alone < 0.7 * compared <= 0.7 * student


@given(st.integers(0, 2**31))
@settings(max_examples=5, deadline=None)
def test_same_seed_same_interval(seed: int) -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    assert interval(values, method="bca", seed=seed) == interval(values, method="bca", seed=seed)


# -- the edges


@pytest.mark.parametrize("method", ["auto", "t", "bca"])
def test_one_seed_bounds_nothing(method) -> None:
    found = interval([0.3], method=method)
    assert (found.point, found.low, found.high, found.n) == (0.3, -math.inf, math.inf, 1)


@pytest.mark.parametrize("method", ["auto", "t", "bca"])
@pytest.mark.parametrize("n", [2, 12])
def test_equal_values_are_the_point(method, n) -> None:
    found = interval([0.1] * n, method=method)
    assert found.low == found.point == found.high == 0.1


def test_identical_arms_differ_by_exactly_zero() -> None:
    arm = np.random.default_rng(0).lognormal(size=10)
    for scale in ("difference", "log-ratio"):
        found = paired_interval(arm, arm, scale=scale)
        assert found.low == found.point == found.high == 0


def test_log_ratio_of_huge_and_tiny() -> None:
    found = paired_interval([1e300, 1e305], [1e-300, 1e-302])
    assert math.isfinite(found.point)
    assert found.point == pytest.approx(math.log(10) * (600 + 607) / 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interval([]), "values are empty"),
        (lambda: interval([1.0, math.nan, 2.0, math.inf]), r"2 of 4 values are not finite \(nan at position 1, inf at"),
        (lambda: interval([[1.0, 2.0]]), r"shape \(1, 2\)"),
        (lambda: interval(["a"]), "not numbers"),
        (lambda: interval(None), "not finite"),
        (lambda: paired_interval([1.0], [1.0, 2.0]), "1 treated values against 2 control values"),
        (
            lambda: paired_interval([1.0, 0.0], [1.0, 2.0]),
            r"1 of 2 treated values are not positive \(0 at position 1\)",
        ),
        (lambda: paired_interval([1.0, 1.0], [-1.0, -2.0]), "2 of 2 control values are not positive"),
        (lambda: paired_interval([], []), "treated values are empty"),
        (lambda: proportional([1, 2], [1]), "do not fit"),
        (lambda: proportional([0, 0], [1, 2]), "not zero"),
        (lambda: proportional([1, 2], [1, float("nan")]), "finite"),
        (lambda: slope_per_seed([1, 1], [[1, 2]]), "two different abscissae"),
        (lambda: slope_per_seed([1], [[1]]), "two different abscissae"),
        (lambda: slope_per_seed([1, 2, 3], [[1, 2]]), "do not fit"),
        (
            lambda: slope_per_seed([1, 2], [[1, math.inf], [math.nan, 0]]),
            r"2 of 4 values of y are not finite \(rows 0, 1",
        ),
        (lambda: ratio_interval([1.0], [1.0, 2.0]), "paired by seed"),
    ],
)
def test_bad_values_are_counted(call, message) -> None:
    with pytest.raises(DataError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"level": 0}, {"level": 1.5}, {"level": math.nan}, {"method": "magic"}])
def test_bad_options(options) -> None:
    with pytest.raises(UsageError):
        interval([1.0, 2.0], **options)
    with pytest.raises(UsageError):
        paired_interval([1.0, 2.0], [2.0, 1.0], scale="ratio")


# -- slopes, ratios, censoring


@given(st.lists(st.tuples(SIXTEENTHS, SIXTEENTHS), min_size=1, max_size=5), st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_slope_of_exact_lines(lines, points) -> None:
    x = np.arange(points) * 0.5
    y = np.array([slope * x + offset for slope, offset in lines])
    assert np.allclose(slope_per_seed(x, y), [slope for slope, _ in lines], atol=1e-9)


def test_slope_is_least_squares() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(3, 8)), rng.normal(size=(3, 8))
    assert np.allclose(slope_per_seed(x, y), [np.polyfit(a, b, 1)[0] for a, b in zip(x, y, strict=True)])


def test_ratio_by_hand_and_unbounded() -> None:
    exact = ratio_interval([10.0, 11.0, 12.0], [20.0, 22.0, 24.0])
    assert exact.point == pytest.approx(0.5)
    assert exact.low == pytest.approx(0.5)
    assert exact.high == pytest.approx(0.5)
    for noise in ([1.0, -1.0, 0.5], [0.0, 0.0, 0.0], [1.0, -1.0, 0.0]):
        found = ratio_interval([1.0, 2.0, 3.0], noise)
        assert (found.low, found.high) == (-math.inf, math.inf)
        assert not math.isnan(found.point)
    assert ratio_interval([0.0], [0.0]).high == math.inf


def test_censoring() -> None:
    values, count = censor([10.0, math.inf, 300.0, 301.0], at=300)
    assert values.tolist() == [10, 300, 300, 300]
    assert count == 2


def test_a_line_through_the_origin_and_the_share_it_explains():
    slope, r2 = proportional([1, 2, 3], [2, 4, 6])
    assert (slope, r2) == pytest.approx((2, 1))
    x, y = np.array([1.0, 2.0, 4.0]), np.array([3.0, 1.0, 2.0])
    slope, r2 = proportional(x, y)
    assert slope == pytest.approx(np.linalg.lstsq(x[:, None], y, rcond=None)[0][0])
    assert r2 == pytest.approx(1 - ((y - slope * x) ** 2).sum() / 2)
    assert r2 < 0
    assert np.isnan(proportional([1, 2], [3, 3])[1])


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_share_explained_does_not_depend_on_the_unit(factor):
    x, y = np.array([1.0, 2.0, 4.0]), np.array([3.0, 1.0, 2.0])
    slope, r2 = proportional(x, y)
    assert proportional(x, factor * y) == (pytest.approx(factor * slope), pytest.approx(r2))


def test_halls_p_is_one_where_his_interval_lies_beyond_the_bound():
    values = np.random.default_rng(3).exponential(size=12)
    low, high = hall_ends(values, 1e-9)  # both ends: his centre, which is not the mean
    between = (values.mean() + low) / 2
    assert min(values.mean(), low) < between < max(values.mean(), high)
    assert hall_p(values, between) == 1.0
    assert hall_p(values, low) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
@pytest.mark.parametrize("seed", range(3))
def test_fiellers_ends_are_the_ratios_that_a_t_test_just_rejects(level, seed) -> None:
    rng = np.random.default_rng(seed)
    bottom = 5 + rng.normal(size=9)
    top = 2 * bottom + rng.normal(size=9)  # correlated, as arms of one seed are
    found = ratio_interval(top, bottom, level=level)
    assert found.point == pytest.approx(top.mean() / bottom.mean())
    assert found.low < found.point < found.high
    for end in (found.low, found.high):
        assert scipy_stats.ttest_1samp(top - end * bottom, 0).pvalue == pytest.approx(1 - level)
