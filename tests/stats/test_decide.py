"""Decisions: error rates by simulation, agreement of interval and p-value, and the laws of the rule."""

import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats as scipy_stats

from kit.decided import estimate, verdict
from normscope._errors import DataError, UsageError
from normscope.records import Outcome
from normscope.stats import adjust, alike, decide, holm, interval, no_worse, paired_interval, tost, two_looks
from normscope.stats.decide import seeds_that_decide
from normscope.stats.p_values import p_from_estimate, p_from_values

SIXTEENTHS = st.integers(-800, 800).map(lambda k: k / 16)
SEEDS = st.lists(SIXTEENTHS, min_size=1, max_size=14)
METHODS = st.sampled_from(["auto", "t", "bca"])
H, X, N = Outcome.HOLDS, Outcome.OPPOSITE, Outcome.NO_EFFECT
U, M = Outcome.UNCLEAR, Outcome.NOT_MEASURABLE


def bound(rate: float, runs: int) -> float:
    """Return a rate plus four binomial standard errors."""
    return rate + 4 * math.sqrt(rate * (1 - rate) / runs)


def draws_of(kind: str):
    return {
        "normal": lambda rng, n: rng.normal(size=n),
        "laplace": lambda rng, n: rng.laplace(size=n),
        "t3": lambda rng, n: rng.standard_t(3, size=n),
        "uniform": lambda rng, n: rng.uniform(-1, 1, size=n),
        # Two arms of one skewed distribution.
        "lognormal pair": lambda rng, n: rng.lognormal(size=n) - rng.lognormal(size=n),
    }[kind]


# -- error rates


@pytest.mark.parametrize("n", [3, 5, 10])
@pytest.mark.parametrize("kind", ["normal", "laplace", "t3", "uniform", "lognormal pair"])
def test_null_comparisons_are_seldom_decided(kind: str, n: int) -> None:
    rng, runs = np.random.default_rng(n), 1000
    said = {margin: {H: 0, X: 0} for margin in (0.0, 0.2)}
    for _ in range(runs):
        found = interval(draws_of(kind)(rng, n), draws=400)
        for margin, words in said.items():
            word = decide(found, margin=margin).outcome
            if word in words:
                words[word] += 1
    # Values from a box: Student's interval itself is a little liberal for few of them (measured 0.036 to 0.040).
    level = 0.04 if kind == "uniform" and n < 10 else 0.025
    for word in (H, X):
        assert said[0.0][word] / runs <= bound(level, runs)
        assert said[0.2][word] < said[0.0][word] or said[0.0][word] <= 2


@pytest.mark.parametrize("n", [3, 5, 10, 20])
def test_at_the_margin_no_word_is_given_too_often(n: int) -> None:
    """The worst truth for each word lies at the margin: a rule that says "no effect" there is wrong too."""
    rng, runs = np.random.default_rng(40 + n), 1000
    for truth, false in ((1.0, {H: 0.025, N: 0.025}), (-1.0, {X: 0.025, N: 0.025})):
        words = [decide(truth + rng.normal(size=n), margin=1.0, method="t").outcome for _ in range(runs)]
        for word, level in false.items():
            assert words.count(word) / runs <= bound(level, runs)


def test_error_rate_check_catches_the_bootstrap_alone() -> None:
    rng, runs = np.random.default_rng(0), 1000
    wrong = sum(decide(rng.normal(size=3), margin=0, method="bca", draws=400).outcome is H for _ in range(runs))
    assert wrong / runs > bound(0.025, runs)


def test_p_values_are_uniform_under_the_null() -> None:
    rng = np.random.default_rng(1)
    p = [p_from_values(rng.normal(0.3, 1, size=10), 0.3, method="t") for _ in range(2000)]
    assert scipy_stats.kstest(p, "uniform").pvalue > 1e-3
    # The same, but tested a tenth beside the truth: the check sees it.
    p = [p_from_values(rng.normal(0.5, 1, size=10), 0.3, method="t") for _ in range(2000)]
    assert scipy_stats.kstest(p, "uniform").pvalue < 1e-3


@pytest.mark.parametrize("method", ["t", "auto"])
def test_tost_size_and_power(method) -> None:
    rng, runs = np.random.default_rng(2), 2000
    options = {"low": -1.0, "high": 1.0, "method": method, "draws": 400}
    wrong = sum(tost(rng.normal(1.0, 1, size=12), **options)[0] for _ in range(runs))
    assert 0.02 < wrong / runs <= bound(0.05, runs)
    right = sum(tost(rng.normal(0.0, 0.5, size=12), **options)[0] for _ in range(200))
    assert right > 190


def test_tost_is_scipys_two_one_sided_tests() -> None:
    values = np.random.default_rng(3).normal(0.1, 1, size=15)
    equivalent, p, estimate = tost(values, low=-0.7, high=0.8, method="t")
    low = scipy_stats.ttest_1samp(values, -0.7, alternative="greater").pvalue
    high = scipy_stats.ttest_1samp(values, 0.8, alternative="less").pvalue
    assert p == pytest.approx(max(low, high))
    assert estimate.level == 0.9
    assert equivalent == (p < 0.05)


@given(SEEDS, METHODS, st.integers(1, 400).map(lambda k: k / 16 + 1 / 64))
@settings(max_examples=80, deadline=None)
def test_tost_by_p_and_by_interval_agree(values, method, width) -> None:
    equivalent, p, estimate = tost(values, low=-width, high=width, method=method, draws=500)
    assert equivalent == (-width < estimate.low and estimate.high < width)
    if abs(p - 0.05) > 1e-6:
        assert equivalent == (p < 0.05)


def test_holm_keeps_the_family_wise_error() -> None:
    rng, runs = np.random.default_rng(4), 3000
    p = rng.uniform(size=(runs, 5))
    p[:, 1] = p[:, 0]  # dependence is allowed
    wrong = sum(holm(row)[1].any() for row in p) / runs
    naive = (p < 0.05).any(axis=1).mean()
    assert wrong <= bound(0.05, runs)
    assert naive > bound(0.05, runs)


def test_family_of_null_studies_decides_seldom() -> None:
    rng, runs = np.random.default_rng(5), 500
    decided = 0
    for _ in range(runs):
        family = []
        for _ in range(4):
            effect = interval(rng.normal(size=10), draws=400)
            outcome, p, _ = decide(effect, margin=0.0)
            family.append(verdict(outcome, p, effect=effect))
        decided += any(each.outcome.decided for each in adjust(family))
    assert decided / runs <= bound(0.05, runs)


# -- two looks


def test_two_looks_keep_the_error_that_one_look_has() -> None:
    """Simulated: half of the data, then all of it; the nominal p-value of the look that decides, corrected."""
    rng, runs = np.random.default_rng(8), 40_000
    first = rng.normal(size=runs)
    whole = (first + rng.normal(size=runs)) / math.sqrt(2)
    nominal = 2 * scipy_stats.norm.sf(np.maximum(np.abs(first), np.abs(whole)))
    for alpha in (0.01, 0.05, 0.2):
        least = max(p for p in np.linspace(alpha / 2, alpha, 200) if two_looks(float(p)) <= alpha)
        assert (nominal < least).mean() == pytest.approx(alpha, abs=4 * math.sqrt(alpha / runs))
        assert (nominal < alpha).mean() > bound(alpha, runs)  # uncorrected it would err more often
    assert two_looks(0.0294) == pytest.approx(0.05, abs=2e-4)  # Pocock's boundary


@given(st.floats(0, 1), st.floats(0, 1))
def test_two_looks_cost_something_and_at_most_twice(a: float, b: float) -> None:
    low, high = sorted((two_looks(min(a, b)), two_looks(max(a, b))))
    assert low == pytest.approx(two_looks(min(a, b)), abs=1e-9)  # monotone
    assert min(a, b) - 1e-12 <= low <= min(1.0, 2 * min(a, b)) + 1e-12
    assert high <= 1


def test_two_looks_refuse_what_is_no_probability() -> None:
    with pytest.raises(DataError):
        two_looks(1.5)


# -- the rule


@pytest.mark.parametrize(
    ("low", "high", "margin", "outcome"),
    [
        (0.3, 0.5, 0.2, H),
        (0.1, 0.5, 0.2, U),
        (-0.1, 0.1, 0.2, N),
        (-0.5, -0.3, 0.2, X),
        (-0.5, 0.5, 0.2, U),
        (-0.3, -0.1, 0.2, U),
        (0.2, 0.5, 0.2, U),  # touching decides nothing
        (0.0, 0.2, 0.2, U),
        (0.1, 0.2, 0.0, H),
        (-0.2, -0.1, 0.0, X),
        (-0.1, 0.1, 0.0, U),  # without a margin nothing is too small to matter
        (-math.inf, math.inf, 0.0, U),
    ],
)
def test_rule(low, high, margin, outcome) -> None:
    found = decide(estimate(low, high, 0.0 if math.isinf(low) else None), margin=margin)
    assert found.outcome is outcome
    assert bool(found.why) is not outcome.decided


WIDTHS = st.integers(0, 400).map(lambda k: k / 16)


@given(SEEDS, METHODS, WIDTHS, st.sampled_from(["value", "difference"]))
@settings(max_examples=150, deadline=None)
def test_words_intervals_and_p_values_agree(values, method, margin, scale) -> None:
    options = {"scale": scale, "method": method, "draws": 500}
    outcome, p, why = decide(values, margin=margin, **options)
    if len(values) < 3 or max(values) == min(values):
        assert (outcome, p) == (M, None)
        assert why
        return
    wide = interval(values, **options)
    expected = H if wide.low > margin else X if wide.high < -margin else U
    if expected is U and -margin < wide.low and wide.high < margin:
        expected = N
    assert outcome is expected
    assert 0 <= p <= 1
    # A tie of resampled means can sit exactly at an end: there the p-value is the level itself.
    if abs(p - 0.05) > 1e-6 and not {margin, -margin} & {wide.low, wide.high}:
        assert outcome.decided == (p < 0.05)


@given(SEEDS, METHODS, WIDTHS)
@settings(max_examples=80, deadline=None)
def test_a_negated_effect_turns_the_word_round(values, method, margin) -> None:
    turned = {H: X, X: H}
    ours = decide(values, margin=margin, method=method, draws=500)
    theirs = decide(-np.array(values), margin=margin, method=method, draws=500)
    assert theirs.outcome is turned.get(ours.outcome, ours.outcome)
    assert theirs.p_value == (None if ours.p_value is None else pytest.approx(ours.p_value, abs=1e-6))


@given(SEEDS, METHODS, WIDTHS, WIDTHS)
@settings(max_examples=80, deadline=None)
def test_a_larger_margin_is_harder_to_pass_and_easier_to_stay_within(values, method, a, b) -> None:
    small, large = sorted((a, b))
    easy, hard = (decide(values, margin=margin, method=method, draws=500).outcome for margin in (small, large))
    assert hard in (H, X) or easy not in (H, X) or hard in (U, N)
    if hard in (H, X):
        assert easy is hard
    if easy is N:
        assert hard is N


@given(SEEDS, METHODS, st.integers(1, 400).map(lambda k: k / 16))
@settings(max_examples=80, deadline=None)
def test_alike_and_no_worse_are_the_same_test_read_for_other_claims(values, method, bound_) -> None:
    options = {"method": method, "draws": 500, "scale": "difference"}
    beyond = decide(values, margin=bound_, **options).outcome
    both, least = alike(values, bound_, **options).outcome, no_worse(values, bound_, **options).outcome
    assert (both is M) == (least is M) == (beyond is M)
    assert both is {N: H, H: X, X: X}.get(beyond, beyond)
    if least is not M:
        found = interval(values, **options)
        assert least is (H if found.low > -bound_ else X if found.high < -bound_ else U)
    if beyond is H:
        assert least is H  # better never counts against it
    if beyond is X:
        assert least is X
    if beyond is N:
        assert least is H


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=12), st.floats(0, 3), METHODS)
@settings(max_examples=60, deadline=None)
def test_identical_arms_say_nothing(arm, margin, method) -> None:
    for scale in ("log-ratio", "difference"):
        found = paired_interval(arm, arm, scale=scale, method=method)
        assert not decide(found, margin=margin).outcome.decided or (len(arm) > 2 and margin > 0)
    zero = decide(np.array(arm) - np.array(arm), margin=margin)
    assert (zero.outcome, zero.p_value) == (M, None)


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0], [0.3] * 10, [0.0] * 3, [0.1 + 0.2, 0.3, 0.3]])
def test_too_few_seeds_and_equal_seeds_are_not_measurable(values) -> None:
    for found in (decide(values, margin=0.01), alike(values, 0.01), no_worse(values, 0.01)):
        assert (found.outcome, found.p_value) == (M, None)
        assert "seed" in found.why


def test_seeds_that_would_decide_do_decide() -> None:
    """With as many seeds as are said, the interval clears the bound at either end of the spread's range."""
    values = np.random.default_rng(3).normal(0.5, 1.0, 10)
    said = seeds_that_decide(values, (-1.5, 1.5)).split()
    counts = int(said[1]), int(said[3])
    distance = min(abs(values.mean() - 1.5), abs(values.mean() + 1.5))
    for count, tail in zip(counts, (0.9, 0.1), strict=True):
        spread = values.std(ddof=1) * np.sqrt(9 / scipy_stats.chi2.ppf(tail, 9))
        half = scipy_stats.t.ppf(0.975, np.array([count, count // 2]) - 1) * spread / np.sqrt([count, count // 2])
        assert half[0] < distance < half[1] or count <= 2 * len(values)
    assert "more than 1000 seeds would be needed" in seeds_that_decide([0.9, 1.1, 1.0, 1.0001], (1.00001,))


def test_the_range_of_seeds_that_would_decide_holds_their_number_about_as_often_as_it_says() -> None:
    """The number that decides is known from the true spread, with the mean of the sample."""
    generator, inside = np.random.default_rng(5), []
    for _ in range(300):
        values = generator.normal(0.0, 1.0, 6)
        values += 0.5 - values.mean()  # the forecast takes the mean as it is
        low, _, high = seeds_that_decide(values, (0.0,)).partition(" seeds")[0].removeprefix("about ").partition(" to ")
        counts = np.arange(7, 1001)
        true = counts[scipy_stats.t.ppf(0.975, counts - 1) / np.sqrt(counts) < 0.5][0]
        inside.append(int(low) <= true <= int(high or low))
    assert 0.7 < np.mean(inside) < 0.9


def test_p_from_t_estimate_is_exact() -> None:
    values = np.random.default_rng(6).normal(0.5, 1, size=10)
    found = interval(values, method="t")
    for at in (-1.0, 0.0, 0.4, 2.0):
        expected = scipy_stats.ttest_1samp(values, at).pvalue
        assert p_from_values(values, at, method="t") == pytest.approx(expected)
        assert p_from_estimate(found, at) == pytest.approx(expected)


def test_p_from_bootstrap_estimate_is_near() -> None:
    values = np.random.default_rng(7).exponential(size=20)
    found = interval(values, method="bca")
    for at in (0.5, 0.7, 1.2):
        assert p_from_estimate(found, at) == pytest.approx(p_from_values(values, at, method="bca"), abs=0.03)


@pytest.mark.parametrize(
    ("effect", "options", "error"),
    [
        ([math.nan, 1.0], {"margin": 0}, DataError),
        ([], {"margin": 0}, DataError),
        (estimate(math.nan, 1.0), {"margin": 0}, DataError),
        ([1.0, 2.0], {"margin": math.nan}, UsageError),
        ([1.0, 2.0], {"margin": -0.1}, UsageError),
        ([1.0, 2.0, 4.0], {"margin": 0.1, "scale": "odds"}, UsageError),
        (estimate(0.0, 1.0), {"margin": 0.1, "level": 0.9}, UsageError),
    ],
)
def test_bad_input(effect, options, error) -> None:
    with pytest.raises(error) as caught:
        decide(effect, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", [alike, no_worse])
@pytest.mark.parametrize("bound_", [0.0, -1.0, math.inf, math.nan])
def test_bad_bounds(rule, bound_) -> None:
    with pytest.raises(UsageError, match="bound"):
        rule([1.0, 2.0, 3.0], bound_)


@pytest.mark.parametrize(
    "options", [{"low": 1, "high": 0}, {"low": -math.inf, "high": 0}, {"low": 0, "high": 1, "level": 0.4}]
)
def test_bad_equivalence_bounds(options) -> None:
    with pytest.raises(UsageError):
        tost([1.0, 2.0], **options)
