"""Numbers, shares, names and readings as the sentences on what stands out write them."""

import math
import re

from hypothesis import given, strategies as st

from normscope.probes import Readings
from normscope.probes.remarks import amount, called, decades, listed, percent, sentence, share_of, times

FINITE = st.floats(allow_nan=False, allow_infinity=False)


@given(st.floats(0, 1))
def test_a_share_is_within_half_of_its_last_digit(share):
    text = percent(share)
    assert text.endswith(" %")
    value = float(re.search(r"[\d.]+", text)[0]) / 100
    if text.startswith("less than"):
        assert 0 < share < 0.001
    elif text.startswith("more than"):
        assert 0.99 < share < 1
    else:
        assert abs(value - share) <= 0.0051
        assert (value == 1) is (share == 1)
        assert (value == 0) is (share == 0)


@given(st.floats(1e-3, 1e9))
def test_an_amount_has_two_right_digits(value):
    text = amount(value).replace(",", "").replace("−", "-")
    assert abs(float(text) - value) <= 0.051 * value


@given(FINITE)
def test_every_number_is_written(value):
    for text in (amount(value), times(value)):
        assert text
        assert not re.search(r"nan|inf", text)


@given(st.floats(5e-324, 1.7e308), st.floats(5e-324, 1.7e308))
def test_decades_are_those_of_the_ratio(over, under):
    assert decades(over, under) == -decades(under, over)
    if 1e-300 < over / under < 1e300:
        assert math.isclose(decades(over, under), math.log10(over / under), rel_tol=1e-9, abs_tol=1e-9)


def test_counts_have_their_nouns():
    assert share_of(1, 1, "layer") == "the layer"
    assert share_of(2, 2, "layer") == "both layers"
    assert share_of(12, 12, "layer") == "all 12 layers"
    assert share_of(1, 12, "layer") == "1 of 12 layers"
    assert listed([]) == ""
    assert listed(["a"]) == "a"
    assert listed(["a", "b", "c"]) == "a, b and c"


@given(st.text(min_size=1))
def test_a_name_stands_between_two_backquotes(name):
    assert called(name).count("`") == 2
    assert called("") == "the whole model"


@given(st.text(min_size=1))
def test_a_sentence_ends_once(text):
    said = sentence(text)
    assert said[-1] in ".!?"
    assert sentence(said) == said


@given(st.lists(st.floats(), min_size=1, max_size=12))
def test_late_is_the_median_of_the_last_quarter_and_nan_is_told(values):
    readings = Readings({"x": {"a": list(enumerate(values))}}, {})
    fine = [value for value in values if math.isfinite(value)]
    if fine:
        assert min(fine) <= readings.late("x")["a"] <= max(fine)
        assert readings.first("x")["a"] == fine[0]
    else:
        assert readings.late("x") == readings.first("x") == {}
    assert bool(readings.not_finite("x")) is (len(fine) < len(values))
