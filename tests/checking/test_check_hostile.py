"""Set-ups that raise, print, lie and branch: one line or a judgement, and nothing left behind."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from check_setups import HOSTILE, LOADER, POISONED, WELL
from torch import nn

import normscope as ns
from normscope import checking, rules
from normscope.modules.state import Snapshot


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def make():\n    raise ValueError('two\\nlines')", "make() raised ValueError: two lines (setup.py:"),
        ("def make():\n    raise SystemExit(0)", "make() raised SystemExit: 0"),
        ("def make():\n    return None", "make() returned None: it must return an ns.Case"),
        ("def make():\n    return 3", "make() returned an object of type int"),
        ("async def make():\n    return 3", "make() returned an object of type coroutine"),
        ("def make(width):\n    return None", "make wants width"),
        ("make = 3", "of type int: it must be a function"),
        ("def make():\n    return (net(),)", "a tuple of 1"),
        ("def make():\n    return net(), loss_fn, None", "loader must give batches"),
        ("def make():\n    return net(), loss_fn, []", "loader is empty"),
        ("def make():\n    return net(), loss_fn, iter(data())", "iterator"),
        ("def make():\n    return loss_fn, net(), data()", "model must be a torch.nn.Module"),
        ("def make():\n    return {'model': net(), 'loss': loss_fn}", "the key 'loss'"),
        ("def make():\n    return {'model': net()}", "without loss_fn, loader"),
        ("def make():\n    return nn.Linear(2, 2)", "no batch norm in it"),
        ("def make():\n    return net().to('meta'), loss_fn, data()", "meta device"),
        ("def make():\n    return net().to('meta')", "meta device"),
        ("def make():\n    return nn.Sequential(nn.LazyBatchNorm1d()), loss_fn, data()", "lazy"),
        (
            "def make():\n    return net(), (lambda m, b: 1 / 0), data()",
            "training step 0 raised ZeroDivisionError: division by zero (setup",
        ),
        ("def make():\n    return net(), (lambda m, b: exit()), data()", "SystemExit"),
        ("def make():\n    return net(), (lambda m, b: None), data()", "the loss function returned None: it must"),
        ("def make():\n    return net(), (lambda m, b: m(b[0])), data()", "returned a tensor of shape (32, 3)"),
        ("def make():\n    return net(), loss_fn, [(torch.randn(32, 7), 0)]", "RuntimeError"),
        ("def make():\n    return net(), loss_fn, data(size=0)", "batch 0 of the loader is empty"),
        ("def make():\n    return net(), loss_fn, [None]", "TypeError"),
        (
            "class L:\n    def __iter__(self):\n        yield from ()\ndef make():\n    return net(), loss_fn, L()",
            "no batch",
        ),
        (
            LOADER.format("raise OSError('disk')"),
            "disk",
        ),
        ("import nothing_like_it\ndef make():\n    pass", "No module named 'nothing_like_it'"),
        ("def make(:\n", "SyntaxError"),
        ("raise SystemExit('usage: train.py')", "SystemExit: usage: train.py"),
    ],
)
def test_a_bad_factory_is_one_line(refuse, write, code, words):
    assert words in refuse(f"{write(code)}:make", "--format", "json")


def test_targets_that_are_not_there_are_one_line(refuse, write, tmp_path):
    path = write(WELL)
    assert "did you mean make" in refuse(f"{path}:mak")
    assert "no file" in refuse(f"{tmp_path}/missing.py:make")
    assert "no module or file" in refuse("nothing_like_it:make")
    assert "no module" in refuse("..relative:make")
    assert "folder" in refuse(f"{tmp_path}:make")
    for words in (str(path), ":make", f"{path}:"):
        assert "FILE_OR_MODULE:FACTORY" in refuse(words)


def test_misuse_is_one_line(refuse, write, tmp_path):
    target = f"{write(WELL)}:make"
    assert "either" in refuse()
    assert "either" in refuse(target, "--state-dict", "x.pt")
    assert "--fix" in refuse(target, "--out", tmp_path / "x.pt")
    assert "must end in" in refuse(target, "--fix", "--out", tmp_path / "x.onnx")
    assert "no folder" in refuse(target, "--fix", "--out", tmp_path / "no" / "x.pt")
    (tmp_path / "x.pt").touch()
    assert "there already" in refuse(target, "--fix", "--out", tmp_path / "x.pt")
    assert "fits no rule" in refuse(target, "--select", "NS9")
    assert "fits no rule" in refuse(target, "--ignore", "E501")
    assert "--help" in refuse(target, "--batches", 0)
    assert "--help" in refuse(target, "--format", "xml")
    assert "--help" in refuse(target, "--level", "fatal")
    assert "did you mean" in refuse("--explain", "NS1O2")
    assert "need data" in refuse(f"{write('def make():' + chr(10) + '    return trained()')}:make", "--fix")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_is_judged_and_left_as_it_was(write, capfd, name):
    path = write(HOSTILE[name])
    space = {}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), space)
    model = space["Net"]().train()
    optimizer = torch.optim.Adam(model.parameters())
    case = ns.Case(model, space["loss_fn"], space["data"](), optimizer, space["data"](2))
    before, state = Snapshot(model), pickle.dumps(optimizer.state_dict())
    findings = ns.check(case)
    assert before.differences() == []
    assert pickle.dumps(optimizer.state_dict()) == state
    assert ("NS103" in {finding.code for finding in findings}) is (name == "NaN inputs")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_gives_a_document(run, write, name):
    path = write(HOSTILE[name] + "\n        def make():\n            return Net(), loss_fn, data()\n")
    code = 1 if name == "NaN inputs" else 0
    document = json.loads(run("check", f"{path}:make", "--json", "--select", "NS10,NS12", code=code).stdout)
    assert bool(document["failed"]) is (name == "NaN inputs")


def test_a_rule_that_raises_is_told_and_the_others_run(run, write, monkeypatch):
    kind = type(rules.get("NS108"))

    def broken(self, evidence):
        raise KeyError("planted")
        yield

    monkeypatch.setattr(kind, "examine", broken)
    target = f"{write(WELL)}:make"
    done = run("check", target, code=2)
    assert "not judged NS108: KeyError: 'planted'" in done.stdout
    assert done.stderr == "normscope: NS108 could not be judged; the output says why\n"
    document = json.loads(run("check", target, "--json", code=2).stdout)
    assert [one["code"] for one in document["failed"]] == ["NS108"]
    assert "NS103" in run("check", f"{write(POISONED)}:make", code=1).stdout


def _space(write, code=""):
    path = write(code)
    space = {}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), space)
    return space


def test_what_a_check_costs_does_not_grow_with_the_data(write):
    """Counted, not timed: a busy machine must not fail it."""
    space, counts = _space(write), []
    for length in (12, 60):
        model = space["trained"]()
        passes = [0, 0]

        def count(module, inputs, output, passes=passes):
            passes[torch.is_grad_enabled()] += 1

        model.register_forward_hook(count)
        loader = space["data"](length)
        ns.check(ns.Case(model, space["loss_fn"], loader, torch.optim.SGD(model.parameters(), 0.1), loader))
        counts.append(tuple(passes))
    assert counts[0] == counts[1]
    assert counts[0][0] <= 70
    assert counts[0][1] <= 6


def test_the_gap_finds_noise_that_is_there_and_none_that_is_not(write):
    space = _space(write)
    for noise in (False, True):
        model = nn.Sequential(nn.Dropout(0.5 if noise else 0.0), space["trained"]()).train()
        gap = ns.check(ns.Case(model, space["loss_fn"], space["data"](), None, space["data"](2)), ["NS103"]).gap
        assert (gap.of("dropout and other noise") != 0) is noise
        assert sum(share.loss for share in gap.shares) == pytest.approx(gap.total, abs=1e-6)


def test_a_nan_that_arises_between_modules_is_located(write):
    space = _space(write, HOSTILE["NaN inputs"])
    case = ns.Case(space["Net"]().train(), space["loss_fn"], space["data"]())
    (finding,) = ns.check(case, ["NS103"])
    assert "the code before net.0" in finding.message
    findings = ns.check(case)
    assert "NS102" in dict(findings.unmeasured)
    assert "not finite" in dict(findings.unmeasured)["NS102"]


def test_a_wrong_choice_of_rules_is_refused_before_anything_is_run_or_read(refuse, tmp_path):
    path, mark = tmp_path / "setup.py", tmp_path / "ran"
    path.write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\ndef make():\n    pass\n")
    assert "fits no rule" in refuse(f"{path}:make", "--select", "NS9")
    assert "fits no rule" in refuse("--state-dict", tmp_path / "missing.pt", "--ignore", "NS9")
    assert not mark.exists()
    assert "make() returned None" in refuse(f"{path}:make")
    assert mark.exists()


def test_an_error_of_the_model_itself_is_that_of_the_check(refuse, write):
    path = write(
        "class Odd(nn.Sequential):\n"
        "    def named_modules(self, *args, **options):\n"
        "        raise ValueError('odd')\n"
        "def make():\n"
        "    return Odd(net()), loss_fn, data()\n"
    )
    said = refuse(f"{path}:make")
    assert "make() raised ValueError: odd" in said  # the case that is made of it looks into the model
    assert "setup.py:" in said


def test_whatever_a_check_raises_is_one_line(refuse, write, monkeypatch, tmp_path):
    def fail(*args, **options):
        raise ValueError("odd")

    monkeypatch.setattr(checking, "check", fail)
    monkeypatch.setattr(checking, "check_state", fail)
    torch.save(nn.BatchNorm1d(3).state_dict(), tmp_path / "state.pt")
    assert "the check raised ValueError: odd" in refuse(f"{write(WELL)}:make")
    assert "the check raised ValueError: odd" in refuse("--state-dict", tmp_path / "state.pt")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("shut", [">/dev/full", ">&-"])
def test_output_that_cannot_be_written_is_one_line(write, shut):
    path = write(POISONED)
    command = f"{sys.executable} -m normscope check {path}:make --select NS103 {shut}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("normscope: ")
    assert done.stderr.count("\n") == 1
