"""Records with a column for each quantity, and as frames of pandas: the same values at the same places."""

import sys

import polars
import pytest

from normscope._errors import UsageError
from normscope.records import MemoryStore, Record
from normscope.records.wide import to_pandas, wide

NAN = float("nan")
RECORDS = [
    Record("a", 0, "flow", "conv", "norm", 1.5),
    Record("a", 0, "flow", "conv", "share", 0.25),
    Record("a", 0, "flow", "head", "norm", NAN),
    Record("a", 10, "flow", "conv", "norm", 2.0),
    Record("b", 0, "flow", "conv", "norm", 3.0),
    Record("a", 0, "loss", "", "loss", 7.0),
]


def frame_of(records):
    store = MemoryStore()
    store.append(records)
    return store.frame()


def long_again(found):
    """Every value of a wide frame with its place, as text: NaN equals itself."""
    quantities = [name for name in found.columns if name not in ("cell", "arm", "seed", "step", "site")]
    return sorted(
        str((row["cell"], row["step"], row["site"], name, row[name]))
        for row in found.to_dicts()
        for name in quantities
        if row[name] is not None
    )


def test_a_wide_frame_has_every_value_of_its_probe_at_its_place():
    expected = sorted(str((r.cell, r.step, r.site, r.name, r.value)) for r in RECORDS if r.probe == "flow")
    found = wide(frame_of(RECORDS), "flow")
    assert long_again(found) == expected
    assert len(found) == len({(r.cell, r.step, r.site) for r in RECORDS if r.probe == "flow"})
    assert set(found.columns) == {"cell", "arm", "seed", "step", "site", "norm", "share"}


def test_a_value_that_was_recorded_twice_is_not_lost():
    again = [*RECORDS, Record("a", 0, "flow", "conv", "norm", 9.0)]
    found = wide(frame_of(again), "flow")
    assert sorted(found.filter(polars.col("norm").is_not_nan())["norm"].to_list()) == [1.5, 2.0, 3.0, 9.0]


def test_a_probe_without_records_is_refused_and_the_others_are_named():
    with pytest.raises(UsageError, match="'flwo': there are records of flow"):
        wide(frame_of(RECORDS), "flwo")
    with pytest.raises(UsageError, match="nothing was recorded yet"):
        wide(frame_of([]), "flow")


def test_without_pandas_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas"):
        to_pandas(frame_of(RECORDS))


@pytest.mark.extras
def test_a_frame_of_pandas_has_the_same_rows():
    pytest.importorskip("pandas")
    frame = frame_of(RECORDS)
    found = to_pandas(frame)
    assert list(found.columns) == frame.columns
    assert list(map(str, found["value"])) == list(map(str, frame["value"]))
    assert found["step"].tolist() == frame["step"].to_list()
    assert list(to_pandas(frame.clear()).columns) == frame.columns
