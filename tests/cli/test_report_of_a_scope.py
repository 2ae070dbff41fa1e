"""``normscope report`` on the folder of a scope: the page, what is printed, JSON, and misuse in one line."""

import json
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normscope as ns
from normscope import seen


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


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("facts-scope.json", "{", "facts-scope.json is damaged"),
        ("facts-scope.json", '{"version": 99}', "has layout 99"),
        ("scope-scope.run2.json", "[]", "scope-scope.run2.json is damaged"),
        ("scope-scope.json", "not JSON", "scope-scope.json is damaged"),
        ("run.json", '{"format": 1', "run.json is damaged"),
        ("run.json", None, "run.json is missing"),
    ],
)
def test_records_are_reported_beside_a_damaged_file_which_is_named(run, folder, tmp_path, name, text, says):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    if text is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(text, encoding="utf-8")
    told = run("report", copy).stdout
    assert says in told.partition("What stands out")[0]
    assert "scope.run2: Updates hardly change the weights in both layers" in told
    assert says in (copy / "report.html").read_text(encoding="utf-8").replace("<wbr>", "")


def test_a_folder_without_records_is_refused_with_both_kinds(refuse, folder, tmp_path):
    assert "does not exist" in refuse("report", tmp_path / "nowhere")
    assert "neither the run of a study nor the records of a scope" in refuse("report", tmp_path)
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert "neither the run of a study nor the records of a scope" in refuse("report", tmp_path)
    assert f"give one of them: {folder}" in refuse("report", folder.parent)


def test_facts_of_an_older_version_are_read(folder):
    document = json.loads((folder / "facts-scope.json").read_text(encoding="utf-8"))
    del document["wiring"]
    older = folder.parent / "facts-older.json"
    older.write_text(json.dumps(document), encoding="utf-8")
    assert seen.read_facts(older).wiring == ()
