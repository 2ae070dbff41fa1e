"""What a failing place is offered again, and how much is kept for it."""

import pytest

from normscope.probes import SinkWarning, _sinks  # white box: the bound is not public
from normscope.records import Record


class Down:
    """A place that takes nothing."""

    def append(self, records):
        raise ConnectionError("gone")

    def finding(self, finding):
        raise ConnectionError("gone")

    def close(self, report):
        raise ConnectionError("gone")


def test_the_last_records_are_kept_for_a_place_that_fails_and_all_that_are_missing_are_counted(monkeypatch):
    monkeypatch.setattr(_sinks, "KEPT", 5)
    delivery = _sinks.Delivery(Down())
    records = [Record("scope", step, "p", "", "value", 1.0) for step in range(8)]
    with pytest.warns(SinkWarning, match="Down takes no records: gone"):
        delivery.append(records[:6])
    delivery.append(records[6:])
    assert delivery.waiting() == records[3:]
    with pytest.warns(SinkWarning, match="Down: 8 records did not arrive there: gone.*has the others"):
        delivery.close()
