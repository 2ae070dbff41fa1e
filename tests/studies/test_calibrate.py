"""The verdict engine's own error rates, word by word, and that a broken engine is caught by them."""

import math

import numpy as np
import pytest

from normscope._errors import UsageError
from normscope.stats import decide
from normscope.studies import calibrate, calibration, contrast


def test_no_word_is_false_more_often_than_its_level_allows():
    rates = list(calibrate(studies=60, seeds=(3, 10), seed=1))
    assert {rate.rule for rate in rates} == set(calibration.RULES)
    for rate in rates:
        assert rate.low <= rate.share <= rate.high
        if rate.noise == "all seeds equal":
            assert rate.share == 0, rate  # nothing is said of seeds that do not differ
        elif rate.rule == "a value of one arm":  # said to be above its level by the command and the page
            assert math.isnan(rate.allowed) or rate.share <= 0.35, rate
        else:
            assert not rate.off, rate


def test_the_rules_have_power_and_words_for_every_truth():
    rates = list(calibrate(studies=40, seeds=10, seed=3))
    power = {rate.rule: rate.share for rate in rates if math.isnan(rate.allowed) and rate.noise == "normal"}
    assert min(power[rule] for rule in power if rule != "steps to a target, censored") > 0.6
    assert {rate.word for rate in rates if not math.isnan(rate.allowed)} >= {"holds", "opposite"}


def test_an_engine_that_counts_steps_as_replicates_is_caught(monkeypatch):
    def counting_steps(values, **options):
        return decide(np.repeat(values, 20), **options)

    monkeypatch.setattr(contrast, "decide", counting_steps)
    off = [(rate.rule, rate.word) for rate in calibrate(studies=40, seeds=10, seed=2) if rate.off]
    for rule in ("beyond a margin", "beyond a margin, extended once", "slope per seed"):
        assert {word for found, word in off if found == rule} == {"holds", "opposite", "no effect that matters"}


def test_an_engine_with_the_wrong_sign_is_caught(monkeypatch):
    monkeypatch.setattr(contrast, "decide", lambda values, **options: decide(-np.asarray(values), **options))
    found = [rate for rate in calibrate(studies=40, seeds=10) if rate.rule == "beyond a margin" and not rate.share == 0]
    wrong = {(rate.truth, rate.word) for rate in found if rate.off}
    assert ("twice the margin", "opposite") in wrong
    assert max((rate.share for rate in found if math.isnan(rate.allowed)), default=0) < 0.1


def test_it_is_a_function_of_its_seed_and_tells_how_far_it_is():
    told = []
    first = list(calibrate(studies=20, seeds=3, progress=lambda done, total: told.append((done, total))))
    assert repr(first) == repr(list(calibrate(studies=20, seeds=3)))
    assert told[-1][0] == told[-1][1]
    for studies, seeds in ((3, 10), (20, 1), (20, ())):
        with pytest.raises(UsageError, match="at least 20"):
            list(calibrate(studies=studies, seeds=seeds))
