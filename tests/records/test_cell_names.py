"""Claims of cells: each scope has a cell of its own, whoever else claims at the same time."""

import json
import math
import multiprocessing
import os
from pathlib import Path

import pytest

from kit.cell_claimer import claim_often
from normscope._errors import UsageError
from normscope.records import (
    Record,
    Store,
    claim_cell,
    claims,
    files,
    last_cell,
    last_step,
    require_cell_name,
    take_up_cell,
)


def record(cell: str, step: int) -> Record:
    return Record(cell, step, "p", "", "n", 1.0)


@pytest.mark.parametrize("name", ["scope", "a", "A-b_c.9", "x" * 100, "-", "_", "run2"])
def test_names_that_can_name_a_cell(tmp_path: Path, name: str) -> None:
    assert require_cell_name(name) == name
    assert claim_cell(tmp_path, name) == name
    assert [entry.name for entry in tmp_path.iterdir()] == [f"scope-{name}.json"]


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "/etc/x", "a\\b", "a b", "é", "x" * 101, "a\n", 3])
def test_names_that_cannot(tmp_path: Path, name) -> None:
    for call in (
        lambda: require_cell_name(name),
        lambda: claim_cell(tmp_path, name),
        lambda: last_cell(tmp_path, name),
    ):
        with pytest.raises(UsageError, match="is no name for a cell") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_runs_and_ranks_are_numbered(tmp_path: Path) -> None:
    assert [claim_cell(tmp_path, "scope") for _ in range(3)] == ["scope", "scope.run2", "scope.run3"]
    assert [claim_cell(tmp_path, "eval", rank) for rank in (1, 0)] == ["eval.rank1", "eval.rank0"]
    assert [claim_cell(tmp_path, "eval", rank) for rank in (0, 1)] == ["eval.run2.rank0", "eval.run2.rank1"]
    assert last_cell(tmp_path, "scope") == "scope.run3"
    assert last_cell(tmp_path, "eval", 1) == "eval.run2.rank1"
    assert last_cell(tmp_path, "eval") is None
    assert last_cell(tmp_path / "none", "eval") is None


def test_processes_of_one_run_share_its_number_though_an_earlier_run_had_fewer(tmp_path: Path) -> None:
    assert [claim_cell(tmp_path, "s", rank, ranks=2) for rank in (0, 1)] == ["s.rank0", "s.rank1"]
    assert {claim_cell(tmp_path, "s", rank, ranks=4) for rank in (3, 0, 2, 1)} == {f"s.run2.rank{k}" for k in range(4)}
    assert claim_cell(tmp_path, "s") == "s.run3"
    assert [claim_cell(tmp_path, "s", rank, ranks=2) for rank in (1, 0)] == ["s.run4.rank1", "s.run4.rank0"]


def test_a_name_that_looks_like_another_run_is_not_taken_twice(tmp_path: Path) -> None:
    assert claim_cell(tmp_path, "scope.run2") == "scope.run2"
    assert claim_cell(tmp_path, "scope") == "scope"
    assert claim_cell(tmp_path, "scope") == "scope.run3"
    assert last_cell(tmp_path, "scope.run2") == "scope.run2"


@pytest.mark.parametrize("links", [True, False])
def test_processes_at_once_get_different_cells(tmp_path: Path, links: bool) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = pool.starmap(claim_often, [(str(tmp_path), 20, links)] * 3)
    cells = [cell for one in found for cell in one]
    assert len(set(cells)) == 60
    assert {claim.cell for claim in claims(tmp_path)} == set(cells)
    assert {claim.run for claim in claims(tmp_path)} == set(range(1, 61))


def test_facts_are_kept(tmp_path: Path) -> None:
    claim_cell(
        tmp_path, "scope", facts={"model": "Sequential", "every": 50, "lr": math.inf, "probes": ["a"], "x": Path}
    )
    (claim,) = claims(tmp_path)
    assert claim.facts == {"model": "Sequential", "every": 50, "lr": "inf", "probes": ["a"], "x": str(Path)}
    assert claim.pid == os.getpid()
    assert not claim.process_is_gone


def test_a_process_that_ended_is_known_on_its_machine_alone(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.starmap(claim_often, [(str(tmp_path), 1, True)])
    (claim,) = claims(tmp_path)
    assert claim.process_is_gone
    path = tmp_path / "scope-scope.json"
    path.write_text(path.read_text().replace(claim.host, "elsewhere"))
    assert not claims(tmp_path)[0].process_is_gone


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"cell": "scope.run2.rank3"}'])
def test_a_damaged_claim_still_holds(tmp_path: Path, text: str) -> None:
    for _ in range(2):
        claim_cell(tmp_path, "scope", 3)
    (tmp_path / "scope-scope.run2.rank3.json").write_text(text)
    assert last_cell(tmp_path, "scope", 3) == "scope.run2.rank3"
    assert claim_cell(tmp_path, "scope", 3) == "scope.run3.rank3"


@pytest.mark.parametrize("key", ["name", "run", "rank", "ranks", "pid", "started", "facts"])
def test_a_claim_with_a_value_of_another_kind_is_read_by_its_name(tmp_path: Path, key: str) -> None:
    claim_cell(tmp_path, "scope")
    path = tmp_path / "scope-scope.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: {"a": []} if key != "facts" else 1.5}))
    (claim,) = claims(tmp_path)
    assert (claim.cell, claim.run, claim.rank) == ("scope", 1, None)
    assert claim_cell(tmp_path, "scope") == "scope.run2"


def test_records_of_an_older_version_hold_their_cell(tmp_path: Path) -> None:
    with Store.create(tmp_path, {}) as store:
        store.append([record("scope", 7), record("other.rank1", 3)])
    (part,) = tmp_path.glob("scope-*.parquet")
    part.rename(tmp_path / f"scope-{1:020d}-{'ab' * 6}.parquet")
    assert last_cell(tmp_path, "scope") == "scope"
    assert last_cell(tmp_path, "other", 1) == "other.rank1"
    assert [claim_cell(tmp_path, "scope") for _ in range(2)] == ["scope.run2", "scope.run3"]
    assert [claim_cell(tmp_path, "other", rank) for rank in (0, 1)] == ["other.run2.rank0", "other.run2.rank1"]
    assert last_cell(tmp_path, "scope") == "scope.run3"
    assert claim_cell(tmp_path, "new") == "new"


def test_the_last_step(tmp_path: Path) -> None:
    assert last_step(tmp_path, "scope") is None
    store = Store.create(tmp_path, {})
    for step in (0, 50, 100):
        store.append([record("scope", step), record("scope.run2", step // 2)])
        store.flush()
    assert last_step(tmp_path, "scope") == 100
    assert last_step(tmp_path, "scope.run2") == 50
    assert last_step(tmp_path, "run") is None


def test_a_name_is_taken_first_where_there_are_no_hard_links(tmp_path: Path, monkeypatch) -> None:
    def none(*_):
        raise OSError("this file system has no hard links")

    monkeypatch.setattr(os, "link", none)
    other = tmp_path / "file"
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: False if path == other else exists(path))  # it comes right after
    other.write_text("first")
    assert not files.write_text(other, "second", replace=False)
    assert other.read_text() == "first"


def test_a_cell_that_is_taken_up_is_this_process_s(tmp_path: Path) -> None:
    assert take_up_cell(tmp_path, "scope") is None
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.starmap(claim_often, [(str(tmp_path), 2, True)])
    assert take_up_cell(tmp_path, "scope") == "scope.run2"
    first, second = claims(tmp_path)
    assert (first.process_is_gone, second.process_is_gone) == (True, False)
    assert (second.pid, second.run) == (os.getpid(), 2)


def test_a_cell_of_an_older_version_is_taken_up(tmp_path: Path) -> None:
    with Store.create(tmp_path, {}) as store:
        store.append([record("scope", 7)])
    (part,) = tmp_path.glob("scope-*.parquet")
    part.rename(tmp_path / f"scope-{1:020d}-{'ab' * 6}.parquet")
    assert take_up_cell(tmp_path, "scope") == "scope"
    assert [claim.cell for claim in claims(tmp_path)] == ["scope"]
    assert claim_cell(tmp_path, "scope") == "scope.run2"
