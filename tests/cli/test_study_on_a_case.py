"""``normscope study run SLUG --case FILE:FACTORY`` and ``study list --case``, as a user types them."""

import json

import pytest

from normscope import studies

SET_UP = """\
import torch
from torch import nn
import normscope as ns

def make_case():
    inputs = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
    labels = (inputs.sum(1) > 0).long()
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])
    batches = [(inputs[at : at + 16], labels[at : at + 16]) for at in range(0, 48, 16)]
    return ns.Case(model, loss_fn, batches, torch.optim.SGD(model.parameters(), 0.1), batches)
"""

LONE = SET_UP.replace("nn.BatchNorm1d(8)", "nn.BatchNorm1d(8, affine=False)")  # no gain and no shift to hold fixed


@pytest.fixture
def case(tmp_path):
    (tmp_path / "train.py").write_text(SET_UP, encoding="utf-8")
    return f"{tmp_path / 'train.py'}:make_case"


@pytest.mark.slow
def test_claims_are_asked_of_ones_own_network_a_comparison_for_each_pair_of_arms(case, tmp_path, run):
    options = ("--case", case, "--seeds", 3, "--steps", 4, "--workers", 1, "--out", tmp_path / "runs")
    slugs = ("fewer-iterations", "gamma-cures-vanishing")
    text = run("study", "run", *slugs, *options).stdout
    for slug, arms in zip(slugs, ("own-none", "own-fixed-affine"), strict=True):
        assert f"{slug}: {studies.get(slug).CLAIM}" in text
        assert (tmp_path / "runs" / arms / "report.html").is_file()
    assert text.count("    Asked by question 5 of a comparison: Does the network train faster with its norms") == 2
    assert text.count("    The study's own answer (") == 2
    found = json.loads(run("study", "run", *slugs, *options, "--json").stdout)["comparisons"]  # nothing is run again
    claims = [claim for each in found for claim in each["claims"]]
    assert [claim["slug"] for claim in claims] == [*slugs]
    for claim in claims:
        assert claim["sentence"] in text
        assert claim["means"].startswith("This ")
        assert claim["asked"]["question"] == "speed"


@pytest.mark.slow
def test_a_claim_on_a_kind_of_norm_is_asked_beside_the_network_where_it_has_that_kind(case, tmp_path, run, refuse):
    (tmp_path / "train.py").write_text(SET_UP.replace("BatchNorm1d", "LayerNorm"), encoding="utf-8")
    options = ("--case", case, "--seeds", 3, "--steps", 4, "--workers", 1, "--out", tmp_path / "runs")
    text = run("study", "run", "rmsnorm-equals-layernorm", *options).stdout
    assert "Does the network train faster with RMS norm than with its norms?" in text
    assert (tmp_path / "runs" / "rms-own" / "report.html").is_file()


@pytest.mark.slow
def test_a_claim_that_a_network_cannot_be_asked_stops_no_other(case, tmp_path, run, refuse):
    (tmp_path / "train.py").write_text(SET_UP.replace("nn.BatchNorm1d(8), ", ""), encoding="utf-8")
    options = ("--case", case, "--seeds", 3, "--steps", 4, "--workers", 1, "--out", tmp_path / "runs")
    said = refuse("study", "run", "fewer-iterations", "flat-minima", *options)
    assert "fewer-iterations cannot be asked of this network: none: a model without norms" in said
    assert "flat-minima cannot be asked of this network" in said
    (tmp_path / "lone.py").write_text(LONE, encoding="utf-8")
    lone = ("--case", f"{tmp_path / 'lone.py'}:make_case", *options[2:])
    found = json.loads(run("study", "run", "fewer-iterations", "gamma-cures-vanishing", *lone, "--json").stdout)
    assert [claim["slug"] for each in found["comparisons"] for claim in each["claims"]] == ["fewer-iterations"]
    assert found["refused"].keys() == {"gamma-cures-vanishing"}


def test_the_list_has_every_study_with_its_question_or_the_reason_why_none(run):
    text = " ".join(run("study", "list", "--case").stdout.split())
    found = json.loads(run("study", "list", "--case", "--json").stdout)
    assert {each["slug"] for each in found} == {unit.CODE for unit in studies.all()}
    for each in found:
        assert each["slug"] in text
        assert ("why_not" in each) is not ("on_a_case" in each)


def test_a_study_says_how_it_is_asked_of_ones_own_network_or_why_it_is_not(run):
    said = run("study", "show", "flat-minima").stdout
    assert "Your own network: `normscope study run flat-minima --case train.py:make_case`." in said
    said = " ".join(run("explain", "rank-collapse").stdout.split())
    assert "A network of your own cannot be asked this claim: no question reads ranks over depth." in said
    assert "why_not" in json.loads(run("study", "show", "rank-collapse", "--json").stdout)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("conditioning",), "conditioning cannot be asked of a network of your own: no question reads"),
        (("flat-minima", "--data", "digits"), "--data cannot be said with --case"),
        (("flat-minima", "--preset", "full", "--extend"), "--preset, --extend cannot be said with --case"),
        (("--demo",), "--demo cannot be said with --case"),
    ],
)
def test_what_does_not_fit_a_case_is_refused_in_a_line(words, said, case, tmp_path, refuse):
    assert said in refuse("study", "run", *words, "--case", case, "--out", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_steps_are_those_of_a_case(tmp_path, refuse):
    assert "--steps belongs to --case" in refuse("study", "run", "flat-minima", "--steps", 3, "--out", tmp_path / "x")
