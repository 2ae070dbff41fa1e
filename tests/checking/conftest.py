"""How the tests type commands."""

import textwrap
from collections import namedtuple

import pytest
from check_setups import NET

from normscope import cli

Done = namedtuple("Done", "stdout stderr")


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
