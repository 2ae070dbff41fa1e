"""Provenance: what may change a number, and nothing that names a machine or a person."""

import getpass
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from normscope import records
from normscope.records import provenance
from normscope.records.provenance import collect


def test_what_is_collected() -> None:
    found = collect()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["numpy"]
    assert found["python"].count(".") == 2
    assert found["cores"]["usable"] >= 1
    assert found["utc"].endswith("+00:00")
    assert found["commit"] is None or len(found["commit"]) == 40


def leaks(text: str) -> list[str]:
    """Return what in a text names this machine, its user or a folder of theirs."""
    named = {
        socket.gethostname(),
        getpass.getuser(),
        str(Path.home()),
        str(Path.cwd()),
        str(Path(records.__file__).parent),
    }
    return [secret for secret in named if re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", text, re.IGNORECASE)]


def test_names_neither_machine_nor_user() -> None:
    assert leaks(json.dumps({key: value for key, value in collect().items() if key != "versions"})) == []


@pytest.mark.parametrize("secret", [socket.gethostname(), getpass.getuser(), str(Path.home()), str(Path.cwd())])
def test_the_check_for_names_catches_a_leak(monkeypatch, secret) -> None:
    # white box: what it reads of the machine is planted
    monkeypatch.setattr(provenance, "_cpu", lambda: f"a processor of {secret}")
    assert secret in leaks(json.dumps(collect()))


def test_torch_is_not_imported_for_it() -> None:
    code = "import sys, normscope.records.provenance as p; print(p.collect()['torch'], 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "False"]


def test_outside_a_checkout_there_is_no_commit(monkeypatch) -> None:
    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert collect()["commit"] is None


def test_a_git_that_knows_the_commit_and_no_more_says_nothing_of_changes(monkeypatch, tmp_path) -> None:
    git = tmp_path / "git"
    git.write_text('#!/bin/sh\ncase "$*" in *rev-parse*) echo abc ;; *) exit 1 ;; esac\n')
    git.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("GIT_DIR", raising=False)
    assert (collect()["commit"], collect()["dirty"]) == ("abc", None)
