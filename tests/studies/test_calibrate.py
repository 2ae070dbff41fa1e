"""The verdict engine's own error rates, and that a broken engine is caught by them."""

import math

import numpy as np
import pytest

from normscope._errors import UsageError
from normscope.stats import decide
from normscope.studies import calibrate, calibration as _calibrate


def test_no_rule_supports_what_is_not_so_more_often_than_its_level_allows():
    rates = list(calibrate(studies=100, seed=1))
    assert {rate.rule for rate in rates} == set(_calibrate.RULES)
    for rate in rates:
        if rate.rule == "a value of one arm":  # said to be above its level by the command and the page
            assert rate.truth == "twice the margin" or rate.share <= 0.15, rate
            continue
        assert not rate.off, rate
        assert rate.low <= rate.share <= rate.high
        if rate.truth == "no effect":
            assert rate.share <= 0.02, rate
        if rate.truth == "twice the margin":
            assert math.isnan(rate.allowed)
            assert rate.share > 0.25, rate


def test_an_engine_that_counts_steps_as_replicates_is_caught(monkeypatch):
    def counting_steps(values, **options):
        return decide(np.repeat(values, 20), **options)

    monkeypatch.setattr(_calibrate, "decide", counting_steps)
    off = {rate.rule for rate in calibrate(studies=40, seed=2) if rate.off}
    assert {"beyond a margin", "beyond a margin, extended once", "slope per seed"} <= off


def test_an_engine_with_the_wrong_sign_shows_no_power(monkeypatch):
    monkeypatch.setattr(_calibrate, "decide", lambda values, **options: decide(-np.asarray(values), **options))
    power = [r.share for r in calibrate(studies=40) if r.truth == "twice the margin" and r.rule == "beyond a margin"]
    assert max(power) == 0


def test_it_is_a_function_of_its_seed_and_tells_how_far_it_is():
    told = []
    first = list(calibrate(studies=20, seeds=3, progress=lambda done, total: told.append((done, total))))
    assert repr(first) == repr(list(calibrate(studies=20, seeds=3)))
    assert told[-1][0] == told[-1][1] == len(first)
    with pytest.raises(UsageError, match="at least 20"):
        list(calibrate(studies=3))
