"""What a reader must know of the arms stands on standard error before anything runs, and progress does in lines."""

import warnings

import pytest
import torch
from torch import nn

import normscope as ns
from kit import set_ups
from normscope import comparing
from normscope.cli import compare, demo


class Net(nn.Module):
    """A norm that is a module, and a norm and an activation that are functions."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(nn.functional.layer_norm(torch.relu(self.norm(self.first(x))), (8,)))


def make_case():
    model = Net()
    warnings.warn("the user's own", UserWarning, stacklevel=2)
    return ns.Case(model, set_ups.entropy, set_ups.loaders()[0], torch.optim.SGD(model.parameters(), 0.1))


def test_functions_are_told_before_the_first_run(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(comparing.Comparison, "report", lambda self: tmp_path / "report.html")  # no page is drawn
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = {"kinds": [], "seeds": 1, "steps": 3, "workers": 1, "questions": ["units"]}
        compare.run_and_print(make_case, tmp_path, as_json=False, **settings)
    lines = capsys.readouterr().err.splitlines()
    runs = lines.index("training runs: 1 of 2")
    told = [line for line in lines[:runs] if line.startswith("normscope: ")]
    assert any("not heard by probes: (model): calls relu at test_told_beforehand.py:" in line for line in told)
    assert any("the arm none still has (model): calls layer_norm at" in line for line in told)
    assert lines[runs + 1] == "training runs: 2 of 2"
    assert {each.category for each in caught} == {UserWarning}  # the user's own warnings go where they went


def test_the_demo_writes_lines_where_standard_error_is_no_terminal(tmp_path, capsys, monkeypatch):
    def compared(*_, progress, **settings):
        progress("training runs", settings["seeds"], 8)
        raise ns.NormscopeError("enough")

    monkeypatch.setattr(comparing, "compare", compared)
    with pytest.raises(ns.NormscopeError, match="enough"):
        demo.demo(out=tmp_path, seeds=4, workers=1)
    assert capsys.readouterr().err.splitlines() == ["training runs: 4 of 8"]


def make_one_and_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    batch = torch.randn(16, 6), torch.arange(16) % 3
    return ns.Case(model, set_ups.entropy, [batch], torch.optim.SGD(model.parameters(), 0.1))


def test_seeds_that_do_not_differ_at_all_are_told_before_anything_runs(tmp_path):
    with pytest.warns(
        ns.ComparisonWarning, match="the first step are the same at every seed, so the seeds may not differ"
    ):
        ns.compare(make_one_and_the_same, seeds=1, steps=2, workers=1, questions=["speed"], out=tmp_path)
