"""A scope whose disk is full still has all of its records, and its folder has them once there is room."""

import os

import pytest
import torch
from torch import nn

import normscope as ns
from normscope.records import Store, claims


def loss_fn(model, batch):
    return model(batch).square().mean()


def steps_of(scope, model, optimizer, count):
    for _ in range(count):
        batch = torch.ones(3, 4)
        with scope.step(batch):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()


def test_records_written_and_records_that_wait_are_read_together(tmp_path, monkeypatch):
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.Scope(model, loss_fn, optimizer, ["gradient_flow"], every=1, record_to=tmp_path)
    steps_of(scope, model, optimizer, 2)
    assert set(scope.records()["step"]) == {0, 1}

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        steps_of(scope, model, optimizer, 2)
        with pytest.warns(UserWarning, match="No space left on device"):
            assert set(scope.records()["step"]) == {0, 1, 2, 3}
    whole = scope.records()
    scope.close()
    assert Store.open(tmp_path).frame().equals(whole)


def test_a_run_that_goes_on_takes_up_its_cell(tmp_path):
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    started = []
    for _ in range(2):
        scope = ns.Scope(model, loss_fn, optimizer, ["gradient_flow"], every=1, record_to=tmp_path, start="continue")
        steps_of(scope, model, optimizer, 2)
        scope.close()
        (claim,) = claims(tmp_path)
        started.append(claim.started)
    assert started[1] > started[0]
    assert set(scope.records()["step"]) == {0, 1, 2, 3}
