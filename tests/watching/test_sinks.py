"""Places where records go: what each is handed, and that none of them can end a training or lose records in silence."""

import gc
import os
import random

import numpy as np
import pytest
import torch
from torch import nn

import normscope as ns
from normscope._errors import StoreError
from normscope.probes import SinkWarning
from normscope.records import Finding, Record, Severity, files

FINDING = Finding("X001", "x", Severity.INFO, "nothing is wrong")


class Board:
    """A sink that fails while it is told to."""

    def __init__(self, failing=False):
        self.failing, self.records, self.findings, self.pages = failing, [], [], []

    def append(self, records):
        if self.failing:
            raise ConnectionError("the server is gone\nand more of it")
        assert records
        assert all(isinstance(record, Record) for record in records)
        self.records += records

    def finding(self, finding):
        if self.failing:
            raise ConnectionError("gone")
        self.findings.append(finding)

    def close(self, report):
        if self.failing:
            raise ConnectionError("gone")
        self.pages.append(None if report is None else report.read_text(encoding="utf-8"))


def train(scope, model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()


def watched(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scope = ns.watch(model, optimizer, probes="gradient_flow", every=1, **options)
    return scope, model, optimizer


def rows(records):
    return sorted((r.step, r.site, r.name, r.value) for r in records)


def kept(scope):
    frame = scope.records()
    return sorted(frame.select("step", "site", "name", "value").rows())


@pytest.mark.parametrize("stored", [False, True])
def test_sinks_are_handed_records_findings_and_the_page(tmp_path, stored):
    boards = [Board(), Board()]
    scope, model, optimizer = watched(sinks=boards, rules=["NS122"], record_to=tmp_path / "run" if stored else None)
    with pytest.warns(ns.checking.FindingWarning):
        train(scope, model, optimizer, 3)
    scope.close()
    for board in boards:
        assert rows(board.records) == kept(scope)
        assert [finding.code for finding in board.findings] == ["NS122"]
        assert len(board.pages) == 1
        assert board.pages[0].startswith("<!")


class Drawing(Board):
    """A place of somebody else's, whose code draws from the global random streams."""

    def append(self, records):
        self.records += records
        self._draw()

    def finding(self, finding):
        self._draw()

    def close(self, report):
        self._draw()

    def flush(self):
        pass

    def frame(self):
        raise NotImplementedError

    def _draw(self):
        torch.rand(1)
        np.random.rand()  # noqa: NPY002
        random.random()


@pytest.mark.parametrize("place", ["sinks", "record_to"])
def test_a_place_that_draws_random_numbers_leaves_the_streams_alone(place):
    def streams():
        return torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002

    drawn = []
    for board in (None, Drawing()):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        options = {} if board is None else {place: [board] if place == "sinks" else board}
        scope, model, optimizer = watched(**options)
        train(scope, model, optimizer, 2)
        drawn.append([streams()])
        scope.tell(FINDING)
        drawn[-1].append(streams())
        if place == "sinks":
            scope.close()
        drawn[-1].append(streams())
    assert board.records
    assert drawn[0] == drawn[1]


def test_a_scope_without_records_hands_no_page(tmp_path):
    board = Board()
    scope, *_ = watched(sinks=[board])
    scope.close()
    assert board.pages == [None]


def test_a_failing_sink_is_told_once_and_has_everything_once_it_works_again():
    board, other = Board(failing=True), Board()
    scope, model, optimizer = watched(sinks=[board, other])
    with pytest.warns(SinkWarning, match="Board takes no records: the server is gone; training goes on") as caught:
        train(scope, model, optimizer, 3)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert board.records == []
    board.failing = False
    train(scope, model, optimizer, 1)
    assert rows(board.records) == rows(other.records) == kept(scope)
    assert {row[0] for row in kept(scope)} == {0, 1, 2, 3}
    scope.close()  # no record is missing, so nothing is told


def test_a_sink_that_works_again_at_the_end_has_everything():
    """No further step offers the records once more: closing must."""
    board = Board(failing=True)
    scope, model, optimizer = watched(sinks=[board])
    with pytest.warns(SinkWarning):
        train(scope, model, optimizer, 2)
    board.failing = False
    scope.close()  # no record is missing, so nothing is told
    assert rows(board.records) == kept(scope)
    assert {row[0] for row in kept(scope)} == {0, 1}


def test_at_the_end_it_is_told_how_much_is_missing():
    board = Board(failing=True)
    scope, model, optimizer = watched(sinks=[board])
    with pytest.warns(SinkWarning):
        train(scope, model, optimizer, 2)
    count = scope.records().height
    with pytest.warns(SinkWarning, match=rf"{count} records did not arrive there.*scope\.records\(\) has them all"):
        scope.close()


def test_a_full_disk_ends_no_training_and_keeps_the_records(tmp_path, monkeypatch):
    scope, model, optimizer = watched(record_to=tmp_path / "run")
    whole = files.write_whole

    def full(path, write, **options):
        raise StoreError(f"cannot write {path}: no space left on device")

    monkeypatch.setattr(files, "write_whole", full)

    def train_and_read():  # what was taken is written some seconds later, or as the records are read
        train(scope, model, optimizer, 2)
        return scope.records()

    with pytest.warns(SinkWarning, match="no space left"):
        frame = train_and_read()
    assert set(frame["step"]) == {0, 1}
    with pytest.warns(SinkWarning) as caught:
        scope.close()
    assert any("did not arrive" in str(warning.message) for warning in caught)
    train(scope, model, optimizer, 1)
    monkeypatch.setattr(files, "write_whole", whole)
    scope.close()
    assert set(scope.records()["step"]) == {0, 1, 2}
    again = ns.records.Store.open(tmp_path / "run").frame()
    assert sorted(again.select("step", "site", "name", "value").rows()) == kept(scope)


def test_what_is_pending_is_written_when_the_program_ends(tmp_path):
    import subprocess
    import sys

    script = tmp_path / "train.py"
    script.write_text(
        "import torch, normscope as ns\n"
        "model = torch.nn.Linear(4, 2)\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=.1)\n"
        f"ns.watch(model, optimizer, probes='gradient_flow', every=1, record_to={str(tmp_path / 'run')!r})\n"
        "for _ in range(5):\n"
        "    optimizer.zero_grad(); model(torch.randn(8, 4)).square().mean().backward(); optimizer.step()\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    frame = ns.records.Store.open(tmp_path / "run").frame()
    assert set(frame["step"]) == {0, 1, 2, 3, 4}


class Written(Drawing):
    """A place that counts how often it was told to write out."""

    flushes = 0

    def flush(self):
        self.flushes += 1

    def _draw(self):
        pass


@pytest.mark.parametrize("forked", [False, True])
def test_what_is_pending_is_written_as_a_scope_is_dropped_but_not_by_a_copy_of_the_process(forked, monkeypatch):
    board, model = Written(), nn.Linear(4, 2)
    scope = ns.Scope(model, optimizer=torch.optim.SGD(model.parameters(), 0.1), every=1, record_to=board)
    with scope.step(torch.zeros(1)):
        model(torch.randn(8, 4)).mean().backward()
        scope.optimizers[0].step()
    assert (len(board.records) > 0, board.flushes) == (True, 0)
    own = os.getpid()
    if forked:  # a data loader's worker, say, which ends with a copy of everything
        monkeypatch.setattr(os, "getpid", lambda: own + 1)
    del scope
    gc.collect()
    assert board.flushes == (0 if forked else 1)


def test_a_place_that_ends_the_program_ends_no_training():
    class Exiting(Board):
        def append(self, records):
            raise SystemExit(3)

    scope, model, optimizer = watched(sinks=[Exiting()])
    with pytest.warns(SinkWarning, match="Exiting takes no records: 3; training goes on"):
        train(scope, model, optimizer, 2)
    assert sorted(set(scope.records()["step"])) == [0, 1]
