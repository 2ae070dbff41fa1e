"""The table of what probes cost: that it is made rightly. What the numbers are is no test's matter."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from normscope import cli, probes
from normscope._errors import UsageError
from normscope.bench import probes as bench, probes_page
from normscope.bench._memory import peak_bytes  # white box: a known allocation must be seen

TINY = {"tiny": bench.Model(lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 10)), (8, 6), "x")}


@pytest.fixture(scope="module")
def result():
    seen = []
    found = bench.measure(rounds=1, models=TINY, progress=lambda *told: seen.append(told))
    assert seen[0] == ("tiny", 0, 5)
    assert seen[-1] == ("tiny", 5, 5)
    return found


def test_every_probe_that_is_found_is_measured(result):
    cases = [cost["case"] for cost in result["costs"]]
    assert {probe.CODE for probe in probes.all()} <= set(cases)
    assert len(cases) == len(set(cases))
    for cost in result["costs"]:
        assert 0 < cost["low"] <= cost["ratio"] <= cost["high"]
        assert cost["held"] >= 0
    held = {cost["case"]: cost["held"] for cost in result["costs"]}
    weights = 4 * sum(p.numel() for p in TINY["tiny"].build().parameters())
    assert held["landscape"] > weights  # copies of the parameters, at the least
    assert held["not due at this step"] == 0


def test_amortised_costs_are_spread_over_a_hundred_steps(result):
    found = {cost["case"]: cost["ratio"] for cost in result["costs"]}
    for case in ("covariate_shift", "landscape, 9 points, losses alone"):
        assert found[f"{case}, at 1 step in 100"] == pytest.approx(1 + (found[case] - 1) / 100)


def test_the_page_holds_every_row_the_peers_and_the_machine(result):
    page = probes_page.markdown(result, notes="A note.")
    assert all("| " + " | ".join(row) + " |" in page for row in probes_page.rows(result))
    assert all(peer["tool"] in page for peer in result["peers"])
    assert result["provenance"]["cpu"] in page
    assert "\nA note.\n" in page
    missed = {**result["costs"][0], "ratio": 9.0, "target": 3.0}
    assert probes_page.rows({**result, "costs": [missed]})[0][4] == "3 missed"


def test_the_result_is_json_and_leaves_the_threads_alone(result):
    assert json.loads(json.dumps(result)) == result
    threads = torch.get_num_threads()
    with pytest.raises(UsageError, match="no model 'gpt'"):
        bench.measure(["gpt"])
    with pytest.raises(UsageError, match="rounds=0"):
        bench.measure(rounds=0)
    assert torch.get_num_threads() == threads


def test_memory_is_counted_where_it_lives():
    unit = 1 << 20

    def act():
        first, second = torch.zeros(unit), torch.zeros(unit)
        del first
        third = torch.zeros(unit)
        third.view(-1).add_(second)

    assert peak_bytes(act) == 2 * 4 * unit
    layer, x = nn.Linear(256, 256), torch.randn(256, 256)
    # The rectified output, which the backward pass needs, and beside it what is being made.
    assert peak_bytes(lambda: layer(x).relu().sum().backward()) >= 2 * 4 * 256 * 256


def test_the_command_prints_and_writes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "MODELS", TINY)
    monkeypatch.setattr(bench.measure, "__kwdefaults__", {**bench.measure.__kwdefaults__, "models": TINY})
    page = tmp_path / "deep" / "probes.md"
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "probes", "--rounds", "1", "--out", str(page)])
    assert not stop.value.code
    text = capsys.readouterr().out
    assert "covariate_shift" in text
    assert "PyHessian" in text
    assert page.read_text(encoding="utf-8").startswith("# What the probes cost")
    with pytest.raises(SystemExit):
        cli.main(["bench", "probes", "--rounds", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["costs"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "probes", "--model", "gpt"])
    assert stop.value.code == 2
    assert "no model 'gpt'" in capsys.readouterr().err


def test_a_probe_that_costs_more_than_ten_plain_steps_tells_so_beforehand():
    """The page of measured costs is held against what the probes tell; a machine may make a third of a difference."""
    page = Path(__file__).parents[2] / "benchmarks" / "results" / "probes.md"
    cells = [[cell.strip() for cell in line.split("|")] for line in page.read_text().splitlines()]
    measured = {(row[1], row[2]): float(row[3]) for row in cells if len(row) == 8 and row[2] in ("mlp", "vgg")}
    for kind in probes.all():
        costs = [cost for (case, _), cost in measured.items() if case == kind.CODE]
        if kind.COST is None:
            assert all(cost < 10 for cost in costs), kind.CODE
            continue
        assert not kind.STREAMING
        low, high = kind.COST
        assert costs
        assert 10 < low <= high
        assert all(low / 1.34 < cost < high * 1.34 for cost in costs), kind.CODE
