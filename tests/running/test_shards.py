"""Shares of a run: they never overlap, whatever is complete when each begins, and together they are the run."""

import json
import threading

import pytest
from hypothesis import given, strategies as st
from polars.testing import assert_frame_equal

import normscope as ns
from kit import runner_studies, set_ups
from kit.executed import COMPARISON, records
from normscope import verdicts
from normscope._errors import UsageError
from normscope.records import Store
from normscope.running import IncompleteRunError, Shard
from normscope.studies.cells import SEEDS_AT_ONCE


@given(st.lists(st.integers(), max_size=30), st.integers(1, 9))
def test_shares_are_a_partition_in_even_parts(groups, count):
    shares = [Shard(index + 1, count).share(groups) for index in range(count)]
    assert sorted(group for share in shares for group in share) == sorted(groups)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("words", ["0/3", "4/3", "x", "1", "1/0", "1/3/5", "-1/3", "1.5/3", "", "1/99999999999"])
def test_what_is_no_share_is_refused(words, tmp_path):
    with pytest.raises(UsageError, match="--shard is K/N"):
        runner_studies.Null().run(out=tmp_path, seeds=1, shard=words)
    assert not list(tmp_path.iterdir())


def share(study, out, shard, **options):
    """Run a share; return the verdict, or the error of an incomplete run."""
    try:
        return study.run(out=out, workers=1, shard=shard, **{"seeds": 3} | options)
    except IncompleteRunError as error:
        return error


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of each small study in one go, with its verdict."""
    out = tmp_path_factory.mktemp("whole")
    return out, {study.CODE: study.run(out=out, seeds=3, workers=1) for study in (runner_studies.Twins(), Together())}


Together = runner_studies.Together


@pytest.mark.parametrize("study", [runner_studies.Twins(), Together()], ids=["cell by cell", "seeds together"])
def test_three_shares_one_after_the_other_are_the_run(study, whole, tmp_path):
    out, judged = whole
    first, second, last = (share(study, tmp_path, shard) for shard in ("1/3", "3/3", "2/3"))
    assert 0 < first.complete < second.complete < first.total == second.total
    assert (first.shard, second.shard) == ("1/3", "3/3")
    assert first.complete == first.ran
    assert second.complete == first.ran + second.ran
    assert last == judged[study.CODE]
    assert_frame_equal(records(tmp_path, study.CODE), records(out, study.CODE), check_exact=True)
    assert share(study, tmp_path, "1/3") == last  # all are complete by now


def test_three_shares_at_once_are_the_run_and_none_runs_a_cell_of_another(whole, tmp_path, monkeypatch):
    log = tmp_path / "log"
    log.touch()
    monkeypatch.setenv("RUNNER_LOG", str(log))
    study, found = runner_studies.Twins(), []

    def run(shard):
        found.append(share(study, tmp_path / "runs", shard))

    threads = [threading.Thread(target=run, args=(f"{index}/3",)) for index in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    executed = log.read_text().split()
    assert len(executed) == len(set(executed)) == 12
    assert_frame_equal(records(tmp_path / "runs", "twins"), records(whole[0], "twins"), check_exact=True)


def test_a_share_does_not_depend_on_what_is_complete(tmp_path):
    study, done = Together(), {}
    for name, begun in (("fresh", ()), ("begun", (1,))):
        for seeds in begun:
            study.run(out=tmp_path / name, seeds=seeds, workers=1)
        share(study, tmp_path / name, "1/2", seeds=7)
        done[name] = {cell.id: cell for cell in Store.open(tmp_path / name / "together").cells()}
    assert {cell.seed for key, cell in done["begun"].items() if key not in done["fresh"]} <= {0}
    assert done["fresh"].keys() <= done["begun"].keys()
    # Seeds that are trained at once are a group, of which a share has all or none: 0 to 4, and 5 and 6 of 5 to 9.
    together: dict[tuple, int] = {}
    for cell in done["fresh"].values():
        if study.together(cell):
            key = (str(cell.point), cell.seed // SEEDS_AT_ONCE)
            together[key] = together.get(key, 0) + 1
    assert together
    assert all(count == (5, 2)[group] for (_, group), count in together.items())


def test_an_unclear_study_is_extended_by_shares(tmp_path):
    study, options = runner_studies.Twins(), {"extend": True, "seeds": 3}
    assert share(study, tmp_path / "a", "1/2", **options).total == 12
    second = share(study, tmp_path / "a", "2/2", **options)  # completes the first look, does its share of the second
    assert (second.total, second.complete) == (24, 18)
    last = share(study, tmp_path / "a", "1/2", **options)
    assert last == study.run(out=tmp_path / "b", workers=1, **options)
    assert last.effect.n == 6


def test_studies_that_are_judged_together_wait_for_all_shares(tmp_path, monkeypatch):
    known = {study.CODE: study for study in (runner_studies.Null(), runner_studies.Twins())}
    monkeypatch.setattr(verdicts.studies, "get", known.__getitem__)
    monkeypatch.setattr(verdicts.studies, "load", lambda path: [_run(known[path.name], path)])
    with pytest.raises(IncompleteRunError) as caught:
        verdicts.run(["null", "twins"], out=tmp_path, seeds=2, workers=1, shard="1/2")
    assert (caught.value.ran, caught.value.complete, caught.value.total) == (8, 8, 16)
    judged, failed = verdicts.run(["null", "twins"], out=tmp_path, seeds=2, workers=1, shard="2/2")
    assert [each.run.study.CODE for each in judged] == ["null", "twins"]
    assert not failed


def _run(study, path):
    from normscope.studies import Run

    return Run(study, Store.open(path))


def test_a_comparison_in_shares_is_the_comparison(tmp_path):
    options = COMPARISON | {"workers": 1, "seeds": 2, "questions": ["speed", "cost"]}
    whole = ns.compare(set_ups.make_case, out=tmp_path / "whole", **options)
    with pytest.raises(IncompleteRunError, match="shard 2/2 has run its 2 cells; 2 of 4 cells are complete"):
        ns.compare(set_ups.make_case, out=tmp_path / "shares", shard="2/2", **options)
    assert not (tmp_path / "shares" / "cost.json").exists()
    shared = ns.compare(set_ups.make_case, out=tmp_path / "shares", shard="1/2", **options)
    assert (tmp_path / "shares" / "cost.json").exists()
    assert_frame_equal(records(tmp_path / "shares"), records(tmp_path / "whole"), check_exact=True)
    told = [str(comparison.answers_in_order[0].sentence) for comparison in (shared, whole)]
    assert told[0] == told[1]


def test_a_comparison_with_a_budget_has_no_shares(tmp_path):
    with pytest.raises(UsageError, match="--shard goes without --budget: a budget chooses seeds and steps"):
        ns.compare(set_ups.make_case, out=tmp_path / "runs", shard="1/2", budget="10min")
    assert not (tmp_path / "runs").exists()


def test_the_command_says_what_is_missing_and_ends_well(run, refuse, tmp_path):
    words = ["study", "run", "bn-backward-three-terms", "--seeds", 1, "--workers", 1, "--out", tmp_path / "runs"]
    assert "--shard is K/N" in refuse(*words, "--shard", "4/3")
    assert "no executor 'cluster'" in refuse(*words, "--executor", "cluster")
    assert not (tmp_path / "runs").exists()
    done = run(*words, "--shard", "1/50")
    assert done.stdout.startswith("shard 1/50 has run its 1 cell; 1 of ")
    assert f"cells are complete: `normscope report {tmp_path / 'runs'}` judges when all are" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_the_document_of_a_share_is_json(run, tmp_path):
    words = ["study", "run", "bn-backward-three-terms", "--seeds", 1, "--workers", 1, "--out", tmp_path, "--json"]
    document = json.loads(run(*words, "--shard", "50/50").stdout)
    assert document["shard"] == "50/50"
    assert document["complete"] == document["ran"] < document["cells"]
