"""What `normscope bench layers --rows` measures, in small; no timing is judged."""

import json

import pytest
import torch

from normscope._errors import UsageError
from normscope.bench import rows, rows_page


@pytest.fixture
def quickly(monkeypatch):
    rounds = rows.rounds
    monkeypatch.setattr(rows, "rounds", lambda acts, clock: rounds(acts, clock, 0.0))
    small = {"LayerNorm": (2, 3, 8), "RMSNorm": (2, 3, 8), "GroupNorm": (2, 8, 4, 4), "InstanceNorm2d": (2, 8, 4, 4)}
    monkeypatch.setattr(rows, "KINDS", {kind: (make, (small[kind],)) for kind, (make, _) in rows.KINDS.items()})


def test_all_cases_are_measured_and_told(quickly):
    told, threads = [], torch.get_num_threads()
    result = rows.measure(progress=lambda *said: told.append(said))
    assert len(result["rows"]) == 4 * 2 * len({1, threads})
    assert torch.get_num_threads() == threads
    assert [done for _, done, _ in told] == list(range(8))
    for row in result["rows"]:
        assert row["ours / torch"]["low"] <= row["ours / torch"]["median"] <= row["ours / torch"]["high"]
    page = rows_page.markdown(json.loads(json.dumps(result)))
    assert page.count("| GroupNorm | (2, 8, 4, 4) | bf16 |") == len({1, threads})
    assert len(rows_page.terminal(result)[0][1]) == len(result["rows"])


def test_some_cases_are_chosen_by_name(quickly):
    assert {row["layer"] for row in rows.measure(only="RMS")["rows"]} == {"RMSNorm"}
    with pytest.raises(UsageError, match="no case 'BatchNorm' to measure"):
        rows.measure(only="BatchNorm")
