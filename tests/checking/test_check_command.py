"""``normscope check`` as a user types it: set-ups good and bad in, findings and exit codes out."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from check_setups import POISONED, WELL
from torch import nn

from normscope import rules


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
            model[1].running_mean.mul_(0.03)
            model[1].running_var.sub_(1).mul_(0.03).add_(1)
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


def test_fixes_are_made_checked_again_and_written(run, write, tmp_path):
    target = f"{write(POISONED)}:make"
    safe = run("check", target, "--select", "NS103", "--fix", code=1).stdout
    assert "not fixed  NS103" in safe
    assert "the fix is unsafe" in safe
    lost = run("check", target, "--select", "NS103", "--unsafe-fixes").stdout
    assert "fixed      NS103 non-finite-statistics at 1: reset and recalibrated 1 norm on" in lost
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
                    parameter.mul_(3.0)
            return {"model": model, "loss_fn": loss_fn, "loader": data(), "averaged": averaged, "eval_loader": data(2)}
        """
    )
    document = json.loads(
        run("check", f"{path}:make", "--select", "NS107", "--unsafe-fixes", "--out", tmp_path / "x.pt", "--json").stdout
    )
    assert [one["code"] for one in document["fixes"]] == ["NS107"]
    assert not (tmp_path / "x.pt").exists()
    assert "1.running_mean" in torch.load(tmp_path / "x.averaged.pt", weights_only=True)


@pytest.mark.parametrize("rule", rules.all(), ids=lambda rule: rule.CODE)
def test_every_rule_is_explained(run, rule):
    for words in (("check", "--explain", rule.CODE.lower()), ("explain", rule.SLUG), ("explain", rule.CODE)):
        text = run(*words).stdout
        assert rule.CODE in text
        assert rule.title() in text
        assert "\nWhy it hurts\n" in text
    assert json.loads(run("check", "--explain", rule.CODE, "--json").stdout)["slug"] == rule.SLUG


def test_the_table_of_rates(run, tmp_path):
    out = tmp_path / "check.md"
    out.write_text("# An older table\n\n<!-- start -->\n## Of another program\n<!-- end -->\n", encoding="utf-8")
    result = json.loads(run("bench", "check", "--select", "NS103,NS108", "--json", "--out", out).stdout)
    assert [row["code"] for row in result["rules"]] == ["NS103", "NS108"]
    assert all(row["recall"] == row["precision"] == 1 for row in result["rules"])
    assert result["failed"] == []
    text = out.read_text(encoding="utf-8")
    assert "| NS103 non-finite-statistics | 3 | 3 | 3 | 3 | 1.00 | 1.00 |" in text
    assert "older" not in text
    assert text.endswith("\n\n<!-- start -->\n## Of another program\n<!-- end -->\n")


def test_it_runs_as_a_program(write):
    path = write(POISONED)
    words = [sys.executable, "-m", "normscope", "check", f"{path}:make", "--select", "NS103", "--format", "sarif"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["version"] == "2.1.0"
    assert done.stderr == ""
