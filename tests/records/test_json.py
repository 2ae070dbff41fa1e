"""The one encoder: its output is JSON, reads back as it was, and differs between words and null where it must."""

import json
import math
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from normscope.records import Finding, Severity
from normscope.records.json import build, in_words, or_null, plain


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    value: float
    name: str | None = None


@dataclass(frozen=True)
class Outer:
    colour: Colour
    parts: tuple[Inner, ...]
    count: int = 3
    flag: bool = True
    best: Inner | None = None


FLOATS = st.floats(allow_nan=True, allow_infinity=True)
INNER = st.builds(Inner, FLOATS, st.none() | st.text(max_size=4))
OUTER = st.builds(
    Outer,
    st.sampled_from(Colour),
    st.lists(INNER, max_size=3).map(tuple),
    st.integers(),
    st.booleans(),
    st.none() | INNER,
)


@given(OUTER)
def test_dataclasses_come_back_as_they_were(value):
    text = json.dumps(plain(value), allow_nan=False)
    assert repr(build(Outer, json.loads(text))) == repr(value)  # NaN is equal to itself there


@given(st.recursive(FLOATS | st.integers() | st.text(max_size=3) | st.none() | st.booleans(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
                    max_leaves=9))  # fmt: skip
def test_null_stands_where_words_stand(value):
    words, null = plain(value), plain(value, or_null)
    json.dumps(null, allow_nan=False)

    def same(a, b):
        if isinstance(a, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        if isinstance(a, list):
            return len(a) == len(b) and all(map(same, a, b))
        return b is None if a in ("nan", "inf", "-inf") and not isinstance(b, str) else a == b and type(a) is type(b)

    assert same(words, null)


def test_numbers_that_json_lacks():
    values = [math.nan, math.inf, -math.inf, 1.5, -0.0]
    assert [in_words(value) for value in values] == ["nan", "inf", "-inf", 1.5, 0.0]
    assert [or_null(value) for value in values] == [None, None, None, 1.5, 0.0]


def test_scalars_of_numpy_and_torch_are_numbers():
    given = {"a": np.float32(0.5), "b": np.int64(3), "c": torch.tensor(2.5), "d": np.float64(np.inf), "e": np.bool_(1)}
    assert plain(given) == {"a": 0.5, "b": 3, "c": 2.5, "d": "inf", "e": True}
    assert {type(value) for value in plain(given).values()} == {float, int, str, bool}


def test_a_finding_is_written_whole():
    finding = Finding("NS1", "x", Severity.INFO, "m", ("a", "b"), measured=np.float32(np.nan), bound=2.0,
                      details={"inf": math.inf, "one": 1})  # fmt: skip
    document = finding.to_json()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert (document["measured"], document["bound"], document["severity"]) == ("nan", 2.0, "info")
    assert document["places"] == ["a", "b"]
    assert document["details"] == {"inf": "inf", "one": 1}
    assert list(document) == list(Finding.__dataclass_fields__)


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (Inner, {"value": 1.0}, "lacks 'name'"),
        (Inner, {"value": 1.0, "name": None, "more": 1}, "unknown 'more'"),
        (Inner, {"value": "much", "name": None}, r"it\.value is no number"),
        (Inner, {"value": True, "name": None}, r"it\.value is no number"),
        (Inner, [], "it is no object"),
        (Colour, "green", "none of red, blue"),
        (tuple[int, ...], [1, "2"], r"it\[1\] is no int"),
        (tuple[int, ...], "12", "no list"),
        (int, True, "no int"),
        (str, 1, "no str"),
    ],
)
def test_what_is_of_another_type_is_named_with_its_place(kind, value, said):
    with pytest.raises(ValueError, match=said):
        build(kind, value)


@dataclass
class Held:
    items: dict = field(default_factory=dict)


def test_mappings_within_dataclasses_are_followed():
    assert plain(Held({"a": (math.inf, Colour.RED)})) == {"items": {"a": ["inf", "red"]}}


def test_a_finding_leaves_out_words_as_empty_ones():
    finding = Finding("NS1", "slug", Severity.INFO, "words")
    assert (finding.places, finding.quantity, finding.cost, finding.fix) == (("",), "", "", "")
    assert (finding.measured, finding.bound, finding.details) == (None, None, {})
    assert (finding.safe, finding.fixable) == (False, False)
