"""The script of ``normscope completion`` in a real shell: commands, options, choices and codes of rules."""

import shutil
import subprocess
import sys

import pytest

from normscope import rules
from normscope.cli.completion import complete_codes

TRY = """
eval "$(normscope completion bash)"
read -r _ _ _ _ function _ <<< "$(complete -p normscope)"
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
$function normscope "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def complete(tmp_path, monkeypatch):
    """Return what a shell offers after words of which the last is not finished."""
    program = tmp_path / "normscope"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m normscope "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")

    def complete(*words):
        command = ["bash", "--norc", "-c", TRY, "bash", "normscope", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    return complete


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("che",), ["check"]),
        (("check", "--sel"), ["--select"]),
        (("check", "--select", "NS12"), [rule.CODE for rule in rules.chosen(["NS12"])]),
        (("check", "--ignore", "NS101,ns102"), ["NS101,ns102"]),
        (("check", "--format", "s"), ["sarif"]),
        (("check", "--format", ""), ["text", "json", "sarif", "github"]),
        (("check", "trai"), []),
        (("completion", ""), ["bash", "zsh", "fish"]),
    ],
)
def test_bash_completes(complete, words, offered):
    assert complete(*words) == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script_that_asks_this_program(run, shell):
    script = run("completion", shell).stdout
    assert "_NORMSCOPE_COMPLETE" in script
    assert f"complete_{shell}" in script


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_its_answers_name_the_codes(shell, tmp_path, monkeypatch, run):
    monkeypatch.setenv("_NORMSCOPE_COMPLETE", f"complete_{shell}")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "normscope check --select NS10")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    answer = run().stdout
    assert "NS103" in answer
    assert "non-finite-statistics" in answer


def test_codes_are_those_of_the_rules():
    assert complete_codes("") == [(rule.CODE, rule.SLUG) for rule in rules.all()]
    assert complete_codes("NS101,ns10")[0] == ("NS101,ns101", rules.get("NS101").SLUG)
    assert complete_codes("E5") == []


@pytest.mark.parametrize("words", [(), ("check",), ("study",), ("study", "run"), ("bench", "check")])
def test_h_is_help(run, words):
    assert run(*words, "-h").stdout == run(*words, "--help").stdout
