import math
import re

import pytest
from hypothesis import given, strategies as st

from normscope.plots import effect_words, margin_words, number
from normscope.records import Estimate

INF = math.inf
UNBOUNDED = "×no bound"


def estimate(point, low, high, scale="difference"):
    return Estimate(point, low, high, 0.95, 10, "paired t", scale)


def log(point, low, high):
    return estimate(math.log(point), math.log(low), math.log(high), "log-ratio")


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        (log(1.832, 1.48, 2.21), "×1.83 (1.5 to 2.2)"),
        (estimate(0.12, 0.05, 0.19), "+0.12 (0.05 to 0.19)"),
        (estimate(-0.12, -0.19, -0.05), "−0.12 (−0.19 to −0.05)"),
        (estimate(0.183, 0.169, 0.198, "value"), "0.183 (0.17 to 0.20)"),
        (estimate(0.3, -INF, INF, "log-ratio"), "×1.35 (no bound)"),
        (log(14.2, 0.011, 18000), "×14.2 (0 to 18000)"),  # small beside its interval, and yet no rounding of 0
        (estimate(0.3, 0.1, INF), "+0.30 (0.10 to no bound)"),
        (estimate(math.nan, -INF, INF), "not measured"),
        (estimate(-INF, -INF, INF, "log-ratio"), "not measured"),
        (estimate(2e-16, 1e-16, 3e-16, "value"), "2.0e−16 (1.0e−16 to 3.0e−16)"),
        (estimate(0.0, 0.0, 0.0), "0 (0 to 0)"),
    ],
)
def test_an_effect_in_words(effect, words):
    assert effect_words(effect) == words


def test_plain_words_say_times():
    assert effect_words(log(1.832, 1.48, 2.21), style="plain") == "1.83 times (1.5 to 2.2)"


def test_an_end_near_the_margin_shows_on_which_side_it_lies():
    effect = log(1.83, 1.52, 2.2)
    assert "(1.5 to" in effect_words(effect)
    assert "(1.52 to" in effect_words(effect, margin=math.log(1.5))


@pytest.mark.parametrize(
    ("margin", "scale", "words"),
    [(math.log(1.5), "log-ratio", "×1.5"), (0.05, "difference", "±0.05"), (0.7, "value", "0.7"),
     (1e-9, "error", "below 1.0e−9"),
     (800, "log-ratio", UNBOUNDED)],
)  # fmt: skip
def test_a_margin_in_words(margin, scale, words):
    assert margin_words(margin, scale) == words


@given(st.floats(-1e300, 1e300))
def test_a_number_reads_back_to_two_digits(value):
    read = float(number(value).replace("−", "-"))
    assert read == pytest.approx(value, rel=0.051, abs=1e-320)


@given(
    st.floats(-8, 8), st.floats(0, 5), st.floats(0, 5), st.sampled_from(["log-ratio", "difference", "value"])
)  # fmt: skip
def test_what_is_written_keeps_its_order_and_its_size(point, below, above, scale):
    words = effect_words(estimate(point, point - below, point + above, scale))
    found = re.fullmatch(r"[×+]?(\S+) \((\S+) to (\S+)\)", words)
    assert found, words
    middle, low, high = (float(text.replace("−", "-")) for text in found.groups())
    turn = math.exp if scale == "log-ratio" else float
    assert low <= high
    # Two digits, or a hundredth of the interval, whichever is coarser.
    width = turn(point + above) - turn(point - below)
    assert middle == pytest.approx(turn(point), rel=0.06, abs=1e-5 + 0.02 * width)
    for text, read, end in zip(
        found.groups()[1:], (low, high), (turn(point - below), turn(point + above)), strict=True
    ):
        unit = abs(end) / 10 if "e" in text else 10.0 ** -len(text.partition(".")[2])
        assert abs(read - end) <= 0.5001 * unit
