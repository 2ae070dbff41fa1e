"""``normscope check`` as a user types it: set-ups good and bad in, findings and exit codes out."""

import json
import os
import pickle
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn

import normscope as ns
from normscope import cli, rules
from normscope.probes import Snapshot

Done = namedtuple("Done", "stdout stderr")

NET = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy
import normscope as ns

def loss_fn(model, batch):
    return cross_entropy(model(batch[0]), batch[1])

def data(n=4, size=32):
    stream = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 6, generator=stream), torch.randint(3, (size,), generator=stream)) for _ in range(n)]

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

def trained():
    model, loader = net(), data()
    for _ in range(12):
        for batch in loader:
            model(batch[0])
    return model
"""


@pytest.fixture
def run(capfd):
    def run(*words, code=0):
        capfd.readouterr()
        stopped = 0
        try:
            cli.main([str(word) for word in words])
        except SystemExit as stop:
            stopped = stop.code or 0
        done = Done(*capfd.readouterr())
        assert stopped == code, done
        return done

    return run


@pytest.fixture
def refuse(run):
    def refuse(*words, printed=""):
        done = run("check", *words, code=2)
        assert done.stdout == ""
        lines = [line for line in done.stderr.replace(printed, "").splitlines() if line.strip()]
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("normscope: ")
        assert "Traceback" not in lines[0]
        return lines[0]

    return refuse


@pytest.fixture
def write(tmp_path):
    def write(code, name="setup.py"):
        path = tmp_path / name
        path.write_text(NET + textwrap.dedent(code), encoding="utf-8")
        return path

    return write


WELL = """
def make():
    model = trained()
    return ns.Case(model, loss_fn, data(), torch.optim.SGD(model.parameters(), 0.1), data(2))
"""
POISONED = """
def make():
    model = trained()
    model[1].running_mean[2] = float("nan")
    return ns.Case(model, loss_fn, data(), torch.optim.SGD(model.parameters(), 0.1), data(2))
"""


def test_a_clean_set_up_exits_with_0_and_a_sick_one_with_1(run, write):
    well = run("check", f"{write(WELL)}:make")
    assert "nothing found" in well.stdout
    assert "The loss is " in well.stdout
    assert well.stderr == ""
    sick = run("check", f"{write(POISONED)}:make", code=1).stdout
    assert "error[NS103] non-finite-statistics" in sick
    for words in ("at         1\n", "measured", "(bound: 0)", "costs", "--unsafe-fixes applies", "--explain NS103"):
        assert words in sick


@pytest.mark.parametrize(
    "returned",
    [
        "model, loss_fn, data()",
        "model, loss_fn, data(), torch.optim.SGD(model.parameters(), 0.1), data(2)",
        "{'model': model, 'loss_fn': loss_fn, 'loader': data(), 'ignore': {'NS999': 'a reason'}}",
        "ns.Case(model, loss_fn, data())",
        "model",
    ],
)
def test_a_factory_may_return_any_of_these(run, write, returned):
    path = write(f"def make():\n    model = trained()\n    return {returned}\n")
    document = json.loads(run("check", f"{path}:make", "--format", "json").stdout)
    assert document["schema"] == "normscope.check"
    assert document["file"] == str(path)
    assert document["line"] == Path(path).read_text(encoding="utf-8").splitlines().index("def make():") + 1
    only_buffers = returned == "model"
    assert len(document["rules"]) == sum(rule.BUFFERS_ONLY or not only_buffers for rule in rules.all())
    assert any("without loss and data" in note for note in document["notes"]) is only_buffers


def test_an_object_in_a_module_may_be_named(run, write, monkeypatch, tmp_path):
    write(POISONED + "\nclass Made:\n    case = make()\n", "planted_setup.py")
    monkeypatch.chdir(tmp_path)
    assert "NS103" in run("check", "planted_setup:Made.case", "--select", "ns103", code=1).stdout
    sys.modules.pop("planted_setup")
    assert not (tmp_path / "__pycache__").exists()


def test_rules_are_chosen_and_levels_decide(run, write):
    path = write(
        """
        def make():
            model = trained()
            model[1].momentum = 0.01
            model[1].num_batches_tracked.fill_(3)
            return ns.Case(model, loss_fn, data(), None, data(2))
        """
    )
    target = f"{path}:make"
    found = json.loads(run("check", target, "--json", "--select", "NS109").stdout)
    assert [(one["code"], one["severity"]) for one in found["findings"]] == [("NS109", "warning")]
    assert found["rules"] == ["NS109"]
    run("check", target, "--select", "NS109", "--level", "warning", code=1)
    left = json.loads(
        run("check", target, "--json", "--select", "NS108,NS109", "--ignore", "immature-statistics").stdout
    )
    assert left["rules"] == ["NS108"]
    assert left["findings"] == []


def test_what_is_ignored_is_listed_with_its_reason(run, write):
    path = write(
        """
        def make():
            model = trained()
            model[1].running_mean[2] = float("nan")
            ns.ignore(model[1], "NS103", "planted on purpose")
            return model, loss_fn, data()
        """
    )
    done = run("check", f"{path}:make", "--select", "NS103")
    assert "ignored    NS103 non-finite-statistics at 1: planted on purpose" in done.stdout
    assert "1 ignored on purpose" in done.stdout


def test_standard_output_holds_nothing_but_the_document(run, write):
    path = write(
        """
        import os, subprocess, sys
        print("while importing")

        def make():
            print("in the factory")
            os.write(1, b"by descriptor\\n")
            subprocess.run([sys.executable, "-c", "print('by a child')"], check=True)
            def noisy(model, batch):
                print("in the loss")
                return loss_fn(model, batch)
            return ns.Case(trained(), noisy, data())
        """
    )
    for form in ("json", "sarif"):
        done = run("check", f"{path}:make", "--format", form, "--select", "NS103,NS105", "--level", "error")
        json.loads(done.stdout)
        for words in ("while importing", "in the factory", "by descriptor", "by a child", "in the loss"):
            assert words in done.stderr


LOADER = "class L:\n    def __iter__(self):\n        {}\ndef make():\n    return net(), loss_fn, L()"


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
            "ZeroDivisionError: division by zero (setup",
        ),
        ("def make():\n    return net(), (lambda m, b: exit()), data()", "SystemExit"),
        ("def make():\n    return net(), (lambda m, b: None), data()", "raised"),
        ("def make():\n    return net(), (lambda m, b: m(b[0])), data()", "raised"),
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


HOSTILE = {
    "custom autograd": """
        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                return 2 * x
            @staticmethod
            def backward(ctx, g):
                return 2 * g
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = trained()
            def forward(self, x):
                return Double.apply(self.net(x))
        """,
    "called twice": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.inlet, self.norm, self.head = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
            def forward(self, x):
                return self.head(self.norm(self.inlet(self.norm(self.inlet(x)))))
        """,
    "data-dependent branch": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b, self.calls = trained(), trained(), 0
            def forward(self, x):
                self.calls += 1
                return self.a(x) if x[0, 0] > 0 else self.b(x)
        """,
    "NaN inputs": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = trained()
            def forward(self, x):
                return self.net(torch.where(x > 2, torch.nan, x))
        """,
    "hooks, noise and modes": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = trained()
                self.net[1].register_forward_hook(lambda m, i, o: o + 0.0)
                self.drop = nn.Dropout(0.3)
                self.seen = []
            def forward(self, x):
                self.seen.append(len(x))
                return self.net(self.drop(x) + 0.01 * torch.rand_like(x))
        """,
    "no norm": """
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Linear(6, 3)
            def forward(self, x):
                return self.net(x)
        """,
}


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


def test_fixes_are_made_checked_again_and_written(run, write, tmp_path):
    target = f"{write(POISONED)}:make"
    safe = run("check", target, "--select", "NS103", "--fix", code=1).stdout
    assert "not fixed  NS103" in safe
    assert "the fix is unsafe" in safe
    lost = run("check", target, "--select", "NS103", "--unsafe-fixes").stdout
    assert "fixed      NS103 non-finite-statistics at 1: reset and recalibrated 1 norms" in lost
    assert "nothing found" in lost
    assert "end with it" in lost
    out = tmp_path / "repaired.pt"
    document = json.loads(run("check", target, "--select", "NS103", "--unsafe-fixes", "--out", out, "--json").stdout)
    assert document["findings"] == []
    assert document["fixes"][0]["state_dict_tensors"] == 3
    assert document["fixes"][0]["beyond_state_dict"] == []
    assert document["saved"] == [f"{out}: the state dict of the model, 8 tensors"]
    state = torch.load(out, weights_only=True)
    assert all(torch.isfinite(value).all() for value in state.values())
    nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).load_state_dict(state)
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_what_no_state_dict_holds_is_said(run, write, tmp_path):
    path = write(
        """
        def make():
            model = trained()
            model[1].momentum = 0.9
            return model, loss_fn, data()
        """
    )
    out = tmp_path / "x.pt"
    done = run("check", f"{path}:make", "--select", "NS108", "--unsafe-fixes", "--out", out).stdout
    done = " ".join(done.split())
    assert "changed 0 tensors of the state dict and, which no state dict holds, momentum of 1 module" in done
    assert "x.pt was not written" in done
    assert "where the model is built" in done
    assert not out.exists()


def test_averaged_weights_are_written_beside(run, write, tmp_path):
    path = write(
        """
        import copy
        def make():
            model = trained()
            averaged = copy.deepcopy(model)
            with torch.no_grad():
                for parameter in averaged.parameters():
                    parameter.mul_(0.5)
            return {"model": model, "loss_fn": loss_fn, "loader": data(), "averaged": averaged, "eval_loader": data(2)}
        """
    )
    document = json.loads(
        run("check", f"{path}:make", "--select", "NS107", "--unsafe-fixes", "--out", tmp_path / "x.pt", "--json").stdout
    )
    assert [one["code"] for one in document["fixes"]] == ["NS107"]
    assert not (tmp_path / "x.pt").exists()
    assert "1.running_mean" in torch.load(tmp_path / "x.averaged.pt", weights_only=True)


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


@pytest.mark.parametrize("rule", rules.all(), ids=lambda rule: rule.CODE)
def test_every_rule_is_explained(run, rule):
    for words in (("check", "--explain", rule.CODE.lower()), ("explain", rule.SLUG), ("explain", rule.CODE)):
        text = run(*words).stdout
        assert rule.CODE in text
        assert rule.title() in text
        assert "\nWhy it hurts\n" in text
    assert json.loads(run("check", "--explain", rule.CODE, "--json").stdout)["slug"] == rule.SLUG


def test_the_table_of_rates(run, tmp_path, monkeypatch):
    out = tmp_path / "check.md"
    result = json.loads(run("bench", "check", "--select", "NS103,NS108", "--json", "--out", out).stdout)
    assert [row["code"] for row in result["rules"]] == ["NS103", "NS108"]
    assert all(row["recall"] == row["precision"] == 1 for row in result["rules"])
    assert result["failed"] == []
    assert "| NS103 non-finite-statistics | 3 | 3 | 3 | 3 | 1.00 | 1.00 |" in out.read_text(encoding="utf-8")
    # A rule that finds nothing, and one that speaks always, are seen to.
    monkeypatch.setattr(type(rules.get("NS103")), "examine", lambda self, evidence: ())
    monkeypatch.setattr(type(rules.get("NS108")), "examine", lambda self, evidence: [self.finding("always")])
    mute, loud = json.loads(run("bench", "check", "--select", "NS103,NS108", "--json").stdout)["rules"]
    assert (mute["recall"], mute["precision"], mute["beside"]) == (0, None, 0)
    assert (loud["recall"], loud["precision"], loud["beside"]) == (1, 0.5, loud["beside_of"])


def test_it_runs_as_a_program(write):
    path = write(POISONED)
    words = [sys.executable, "-m", "normscope", "check", f"{path}:make", "--select", "NS103", "--format", "sarif"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["version"] == "2.1.0"
    assert done.stderr == ""


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("shut", [">/dev/full", ">&-"])
def test_output_that_cannot_be_written_is_one_line(write, shut):
    path = write(POISONED)
    command = f"{sys.executable} -m normscope check {path}:make --select NS103 {shut}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("normscope: ")
    assert done.stderr.count("\n") == 1
