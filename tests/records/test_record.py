"""A record made quickly is a record."""

import pickle
from dataclasses import FrozenInstanceError, asdict, replace

import pytest

from normscope.records import Record, quick_record, quick_records


@pytest.mark.parametrize("fields", [("scope", 3, "loss", "", "loss", 0.5), ("b", 0, "p", "a.0", "angle", -1.0, "rad")])
def test_a_quick_record_is_the_same_record(fields):
    quick, plain = quick_record(*fields), Record(*fields)
    assert type(quick) is Record
    assert quick == plain
    assert hash(quick) == hash(plain)
    assert repr(quick) == repr(plain)
    assert asdict(quick) == asdict(plain)
    assert replace(quick, value=2.0) == replace(plain, value=2.0)
    assert pickle.loads(pickle.dumps(quick)) == plain
    with pytest.raises(FrozenInstanceError):
        quick.value = 1.0


def test_many_quick_records_are_those_made_one_by_one():
    values = [("a", "angle", 0.25), ("b", "norm", 2), ("", "norm", float("inf"))]
    made = quick_records("scope", 7, "p", iter(values), {"angle": "rad"})
    assert made == [Record("scope", 7, "p", *row, "rad" if row[1] == "angle" else "1") for row in values]
    assert {type(record.value) for record in made} == {float}
    assert quick_records("scope", 7, "p", []) == []
