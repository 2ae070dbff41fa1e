"""Checkpoints alone: judged by their buffers, and no code of theirs is run."""

import json
import os
import pickle
import sys

import pytest
import torch
from check_setups import POISONED, WELL
from torch import nn


def _state(**changes):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[1].running_mean.fill_(0.5)
    state = model.state_dict()
    return state | {f"1.{key}": value for key, value in changes.items()}


def test_a_checkpoint_is_judged_by_its_buffers(run, tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"epoch": 3, "model": _state()}, path)
    assert "nothing found" in run("check", "--state-dict", path).stdout
    torch.save({"epoch": 3, "model": _state(running_var=torch.tensor([1.0, -2.0, 1.0, float("inf")]))}, path)
    document = json.loads(run("check", "--state-dict", path, "--json", code=1).stdout)
    assert [(one["code"], one["places"]) for one in document["findings"]] == [("NS103", ["model.1"])]
    assert not document["findings"][0]["fixable"]
    sarif = json.loads(run("check", "--state-dict", path, "--format", "sarif", code=1).stdout)
    location = sarif["runs"][0]["results"][0]["locations"][0]
    assert location["physicalLocation"]["artifactLocation"]["uri"].endswith("checkpoint.pt")


class _Evil:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_bad_checkpoint_is_one_line_and_runs_nothing(refuse, tmp_path):
    path = tmp_path / "checkpoint.pt"
    assert "No such file" in refuse("--state-dict", path)
    assert "folder" in refuse("--state-dict", tmp_path)
    path.touch()
    assert "is empty" in refuse("--state-dict", path)
    torch.save(_state(), path)
    whole = path.read_bytes()
    for size in (1, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:size])
        assert "truncated" in refuse("--state-dict", path)
    path.write_text("not a checkpoint", encoding="utf-8")
    assert "truncated or no file" in refuse("--state-dict", path)
    evil = _Evil()
    evil.path = str(tmp_path / "ran")
    for save in (torch.save, lambda made, to: to.write_bytes(pickle.dumps(made))):
        save({"state": evil, "model": _state()}, path)
        assert "nothing was run" in refuse("--state-dict", path)
        save(nn.BatchNorm1d(3), path)
        assert "nothing was run" in refuse("--state-dict", path)
    assert not (tmp_path / "ran").exists()
    torch.save([1, 2], path)
    assert "a list, not a state dict" in refuse("--state-dict", path)
    torch.save(nn.Linear(2, 2).state_dict(), path)
    assert "no batch norm" in refuse("--state-dict", path)
    torch.save(_state(), path)
    assert "reads buffers alone" in refuse("--state-dict", path, "--select", "NS105")
    assert "need the model" in refuse("--state-dict", path, "--fix")


def test_without_safetensors_it_says_what_to_install(refuse, write, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert "pip install safetensors" in refuse("--state-dict", path)
    assert "pip install safetensors" in refuse(f"{write(WELL)}:make", "--fix", "--out", tmp_path / "x.safetensors")


def test_safetensors_are_read_and_written(run, refuse, write, tmp_path):
    library = pytest.importorskip("safetensors.torch")
    path = tmp_path / "checkpoint.safetensors"
    library.save_file(_state(running_mean=torch.full((4,), torch.nan)), str(path))
    assert "NS103" in run("check", "--state-dict", path, code=1).stdout
    other = path.rename(tmp_path / "without_suffix")
    assert "NS103" in run("check", "--state-dict", other, code=1).stdout
    path.write_bytes(other.read_bytes()[:-5])
    assert "truncated" in refuse("--state-dict", path)
    out = tmp_path / "repaired.safetensors"
    run("check", f"{write(POISONED)}:make", "--select", "NS103", "--unsafe-fixes", "--out", out)
    assert torch.isfinite(library.load_file(str(out))["1.running_mean"]).all()
