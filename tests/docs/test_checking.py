"""What the guide to checking says runs."""

import re
import shlex
from pathlib import Path

import typer.main

import normscope as ns
from normscope import cli
from normscope.checking.settings import settings_in

GUIDE = Path(__file__).parents[2] / "docs" / "checking.md"
TEXT = GUIDE.read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)


def test_its_python_runs(capsys):
    space = {}
    exec(compile("\n".join(blocks("python")), str(GUIDE), "exec"), space)
    printed = capsys.readouterr().out
    assert space["found"][0].code == "NS108"
    assert "fixed NS108" in printed
    assert "loss of training" in printed


def test_its_settings_are_read(tmp_path):
    (text,) = blocks("toml")
    (tmp_path / "pyproject.toml").write_text(text)
    settings = settings_in(tmp_path / "pyproject.toml")
    assert (settings.select, settings.ignore, settings.level) == (("NS1",), ("NS123",), "warning")
    assert settings.reason("NS105", "backbone.1") == "small batches are on purpose"
    assert settings.reason("NS105", "head.1") == ""


def test_its_commands_are_parsed():
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    commands += [line.removeprefix("- run: ") for block in blocks("yaml") for line in block.splitlines()]
    commands += re.findall(r"\$\((normscope [^)]*)\)", TEXT)
    assert len(commands) == 8
    for command in commands:
        _, name, *words = shlex.split(command)
        typer.main.get_command(cli.app).commands[name].make_context(name, words)  # raises if it does not fit


def test_its_options_and_attributes_exist(run):
    text = run("check", "--help").stdout
    for option in set(re.findall(r"`(--[\w-]+)", TEXT)):
        assert option in text, option
    assert {"unmeasured", "not_run"} <= set(ns.checking.Findings.__dataclass_fields__)
    assert "losses" in ns.checking.Fixed.__dataclass_fields__
