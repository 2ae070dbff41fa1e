"""``normscope report`` on the folder of a scope: the page, what is printed, JSON, and misuse in one line."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normscope as ns


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder into which two runs recorded, the second one of a model that has no updates to speak of."""
    path = tmp_path_factory.mktemp("scope") / "run"
    for rate in (0.5, 1e-9):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        scope = ns.watch(model, optimizer, probes=["update_ratio", "loss"], every=2, record_to=path)
        for _ in range(7):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(32, 8)), torch.randint(0, 3, (32,))).backward()
            optimizer.step()
        scope.detach()
        scope.close()
    return path


def test_the_page_of_both_runs_is_written_and_what_stands_out_is_printed(run, folder):
    text = run("report", folder).stdout
    assert "scope.run2: Updates hardly change the weights in both layers" in text
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "What the scope saw: Sequential" in page
    assert "scope.run2" in page


def test_json_has_sentences_and_numbers(run, folder, tmp_path):
    told = json.loads(run("report", folder, "--json", "--page", tmp_path / "page.html").stdout)
    assert told["report"] == str(tmp_path / "page.html")
    assert {cell["cell"] for cell in told["cells"]} == {"scope", "scope.run2"}
    (slow,) = [each for each in told["stands_out"] if each["cell"] == "scope.run2"]
    assert slow["probe"] == "update_ratio"
    assert set(slow["sites"]) == {"0", "2"}
    pictures = {(each["cell"], each["probe"]): each for each in told["pictures"]}
    assert set(pictures["scope", "update_ratio"]["late"]) == {"0", "2"}


def test_misuse_is_one_line(refuse, folder, tmp_path):
    assert "--condense is for studies" in refuse("report", folder, "--condense", tmp_path / "small.json")
    assert "ends in .html" in refuse("report", folder, "--page", tmp_path / "page.pdf")
    facts = folder / "facts-scope.json"
    kept = facts.read_text(encoding="utf-8")
    try:
        facts.write_text("{", encoding="utf-8")
        assert "is damaged" in refuse("report", folder)
        facts.write_text('{"version": 99}', encoding="utf-8")
        assert "has layout 99" in refuse("report", folder)
    finally:
        facts.write_text(kept, encoding="utf-8")
