"""The command line as a user types it: words in; text, files and exit codes out."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

import normscope
from normscope import cli
from normscope._unit import discover
from normscope.explain import unit
from normscope.layers import AbstractLayer

HEAVY = ("torch", "polars", "duckdb", "altair", "scipy", "sklearn", "numpy", "rich.progress")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["demo", "--help"], ["study", "run", "--help"], []])
def test_help_imports_nothing_heavy(words):
    probe = (
        "import sys; from normscope.cli import main\n"
        f"try: main({words!r})\n"
        "except SystemExit: pass\n"
        f"print('heavy:', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True).stdout
    assert out.rstrip().endswith("heavy: []")


def test_every_command_has_help_with_an_example():
    import typer.main

    group = typer.main.get_command(cli.app)
    inner = [command for name in ("study", "bench") for command in group.commands[name].commands.values()]
    commands = [*group.commands.values(), *inner]
    for command in commands:
        assert command.help, command.name
        assert "normscope" in (command.epilog or ""), command.name


def test_version(run):
    assert run("--version").stdout == f"normscope {normscope.__version__}\n"


def test_study_list_and_show(run):
    listed = json.loads(run("study", "list", "--json").stdout)
    slugs = [row["slug"] for row in listed]
    assert set(cli.DEMO) <= set(slugs)
    text = run("study", "list").stdout
    assert all(slug in text for slug in cli.DEMO)
    shown = run("study", "show", cli.DEMO[0]).stdout
    for heading in ("Claim", "Method", "Prediction", "Threats"):
        assert f"\n{heading}\n" in shown


@pytest.mark.parametrize("name", ["noisy-batchnorm", "gradient_flow", "batch_norm_2d"])
def test_explain_knows_every_kind_of_unit(run, name):
    assert run("explain", name).stdout.startswith(f"{name}\n")
    assert json.loads(run("explain", name, "--json").stdout)["page"]


def test_explain_knows_every_unit():
    layers = discover(normscope.layers, AbstractLayer)
    named = [(f"study:{found.CODE}", found) for found in normscope.studies.all()]
    named += [(name, found) for found in normscope.rules.all() for name in (found.CODE, found.SLUG)]
    named += [(f"probe:{found.CODE}", found) for found in normscope.probes.all()]
    named += [(found.__name__, found) for found in (*normscope.probes.all(), *layers)]
    for name, expected in named:
        found = unit(name)
        assert found.CODE == expected.CODE
        assert all(text.strip() for text in found.page().values())


def test_unknown_names_are_answered_with_near_ones(refuse):
    assert "noisy-batchnorm" in refuse("explain", "noisy-batchnrm")
    assert "noisy-batchnorm" in refuse("study", "run", "noisy-batchnrm")
    assert "noisy-batchnorm" in refuse("study", "show", "noisy-batchnrm")


def test_misuse_is_one_line(refuse, tmp_path):
    assert "--all" in refuse("study", "run")
    assert "--all" in refuse("study", "run", "--all", "noisy-batchnorm")
    assert "preset" in refuse("study", "run", "noisy-batchnorm", "--preset", "slow", "--out", tmp_path)
    assert "--help" in refuse("study", "run", "noisy-batchnorm", "--seeds", 0)
    assert "--help" in refuse("demos")
    assert "--help" in refuse("demo", "--nothing")
    assert "no run" in refuse("report", tmp_path)
    refuse("report", tmp_path / "missing")


def test_bad_data_is_one_line(refuse, tmp_path):
    where = ("--out", tmp_path / "runs", "--seeds", 1)
    assert "missing" in refuse("study", "run", "noisy-batchnorm", "--data", tmp_path / "missing", *where)
    truncated = tmp_path / "truncated.npz"
    np.savez(tmp_path / "whole.npz", x_train=np.zeros((9, 8, 8)), y_train=np.zeros(9, dtype=np.int64))
    truncated.write_bytes((tmp_path / "whole.npz").read_bytes()[:300])
    refuse("study", "run", "noisy-batchnorm", "--data", truncated, *where)
    assert "x_test" in refuse("study", "run", "noisy-batchnorm", "--data", tmp_path / "whole.npz", *where)
    images = np.full((40, 8, 8), np.nan)
    labels = np.arange(40) % 2
    np.savez(tmp_path / "nan.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    refuse("study", "run", "noisy-batchnorm", "--data", tmp_path / "nan.npz", *where)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(refuse, tmp_path):
    tmp_path.chmod(0o500)
    refuse("study", "run", "noisy-batchnorm", "--seeds", 1, "--out", tmp_path / "runs")


def test_a_file_where_the_folder_should_be(refuse, tmp_path):
    (tmp_path / "runs").write_text("not a folder")
    refuse("study", "run", "noisy-batchnorm", "--seeds", 1, "--out", tmp_path / "runs")


@pytest.mark.slow
def test_one_seed_is_inconclusive_and_the_report_can_be_written_again(run, tmp_path):
    out = tmp_path / "runs"
    slug = "bn-backward-three-terms"
    words = ["study", "run", slug, "--seeds", "1", "--workers", "1", "--out", str(out), "--json"]
    done = subprocess.run([sys.executable, "-m", "normscope", *words], capture_output=True, text=True, check=True)
    assert done.stderr == ""  # no progress bar in a pipe
    first = json.loads(done.stdout)
    assert [row["outcome"] for row in first["verdicts"]] == ["inconclusive"]
    page = Path(first["report"])
    before = page.read_text(encoding="utf-8")
    assert slug in before
    page.unlink()
    small, text = tmp_path / "evidence.json", tmp_path / "evidence.md"
    again = json.loads(run("report", out, "--json", "--condense", small).stdout)
    assert again["verdicts"] == first["verdicts"]
    assert page.is_file()
    told = json.loads(run("report", small, "--markdown", text, "--json").stdout)
    assert told["verdicts"] == first["verdicts"]
    kept = json.loads(small.read_text(encoding="utf-8"))["studies"][0]
    assert (kept["slug"], kept["card"], kept["preset"], kept["data"], kept["seeds"]) == (
        slug,
        1,
        "quick",
        "digits",
        [0],
    )
    assert kept["seconds"] > 0
    assert kept["cores"] >= 1
    assert kept["torch"].startswith("2.")
    assert len(kept["theory"]) == 3
    assert f"normscope study run {slug} --preset quick --seeds 1" in text.read_text(encoding="utf-8")
    run("report", out, "--markdown", tmp_path / "direct.md")
    assert (tmp_path / "direct.md").read_bytes() == text.read_bytes()


def test_a_condensed_file_that_is_none_is_one_line(refuse, tmp_path):
    path = tmp_path / "evidence.json"
    path.write_text('{"format": "normscope evidence", "ver', encoding="utf-8")
    assert "--markdown" in refuse("report", path)
    assert "not whole JSON" in refuse("report", path, "--markdown", tmp_path / "evidence.md")
    path.write_text('{"name": "another"}', encoding="utf-8")
    assert "no condensed verdicts" in refuse("report", path, "--markdown", tmp_path / "evidence.md")
    assert [one.name for one in tmp_path.iterdir()] == ["evidence.json"]


def test_interrupt_ends_in_one_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    judging = types.ModuleType("normscope.verdicts")
    judging.run = interrupted
    monkeypatch.setitem(sys.modules, "normscope.verdicts", judging)
    monkeypatch.setattr(normscope, "verdicts", judging, raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo"])
    assert stop.value.code == 130
    assert "same command" in capsys.readouterr().err
