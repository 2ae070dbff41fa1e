"""The verdict engine's own error rates, word by word, and that a broken engine is caught by them."""

import math

import numpy as np
import pytest

from normscope._errors import UsageError
from normscope.stats import decide
from normscope.studies import calibrate, calibration, contrast

FAMILY = "20 claims, extended once, after Holm"
ALONE = [rule for rule in calibration.RULES if rule != FAMILY]


@pytest.mark.long
def test_no_word_is_false_more_often_than_its_level_allows():
    rates = [*calibrate(studies=30, seeds=(3, 10), rules=ALONE, seed=1)]
    rates += calibrate(studies=20, seeds=3, rules=[FAMILY], seed=1)
    assert {rate.rule for rate in rates} == set(calibration.RULES)
    for rate in rates:
        assert rate.low <= rate.share <= rate.high
        if rate.noise == "all seeds equal":
            assert rate.share == 0, rate  # nothing is said of seeds that do not differ
        elif rate.rule == "a value of one arm":  # said to be above its level by the command and the page
            assert math.isnan(rate.allowed) or rate.share <= 0.4, rate
        else:
            assert not rate.off, rate


def test_the_rules_have_power():
    rates = [*calibrate(studies=30, seeds=10, rules=ALONE, seed=3)]
    power = {rate.rule: rate.share for rate in rates if math.isnan(rate.allowed) and rate.noise == "normal"}
    assert min(power[rule] for rule in power if rule != "steps to a target, censored") > 0.5


def test_an_engine_that_counts_steps_as_replicates_is_caught(monkeypatch):
    def counting_steps(values, **options):
        return decide(np.repeat(values, 6), **options)

    monkeypatch.setattr(contrast, "decide", counting_steps)
    rules = ["beyond a margin", "slope per seed"]
    off = [(rate.rule, rate.word) for rate in calibrate(studies=20, seeds=10, rules=rules, seed=2) if rate.off]
    for rule in rules:
        assert {word for found, word in off if found == rule} == {"holds", "opposite", "no effect that matters"}


def test_an_engine_with_the_wrong_sign_is_caught(monkeypatch):
    monkeypatch.setattr(contrast, "decide", lambda values, **options: decide(-np.asarray(values), **options))
    found = [rate for rate in calibrate(studies=30, seeds=10, rules=["beyond a margin"]) if rate.share]
    wrong = {(rate.truth, rate.word) for rate in found if rate.off}
    assert ("twice the margin", "opposite") in wrong
    assert max((rate.share for rate in found if math.isnan(rate.allowed)), default=0) < 0.1


def test_it_is_a_function_of_its_seed_and_tells_how_far_it_is():
    told = []
    first = list(
        calibrate(
            studies=20, seeds=3, rules=["beyond a margin"], progress=lambda done, total: told.append((done, total))
        )
    )
    assert repr(first) == repr(list(calibrate(studies=20, seeds=3, rules=["beyond a margin"])))
    assert told[-1][0] == told[-1][1]
    for studies, seeds in ((3, 10), (20, 1), (20, ())):
        with pytest.raises(UsageError, match="at least 20"):
            list(calibrate(studies=studies, seeds=seeds))
    with pytest.raises(UsageError, match="no rule 'likeness'"):
        list(calibrate(rules=["likeness"]))
