"""``normscope watch``: it prints the address, ends quietly, and says in a line what cannot be watched."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from kit.live_run import begin, rows_of
from normscope import cli
from normscope.records import Store


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line with which a command is refused."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["watch", *words])
    assert caught.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    return told.err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signal")
@pytest.mark.parametrize("there", [True, False])
def test_it_serves_until_it_is_interrupted(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "run"
    if there:
        store, cell = begin(folder)
        store.append(rows_of(cell, 0))
        store.close()
    words = [sys.executable, "-m", "normscope", "watch", str(folder), "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        line = watching.stdout.readline()
        assert line.startswith(f"Watching {folder} at http://127.0.0.1:")
        assert "Ctrl-C" in line
        url = line.split(" at ")[1].split()[0]
        with urllib.request.urlopen(url + "rows", timeout=60) as answer:
            assert len(json.load(answer)["points"]) == (8 if there else 0)
        watching.send_signal(signal.SIGINT)
        out, err = watching.communicate(timeout=60)
    assert (watching.returncode, out, err) == (0, "", "")
    assert folder.exists() == there


def test_a_port_that_is_asked_for_and_taken(tmp_path: Path, capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = refused([str(tmp_path), "--port", str(port)], capsys)
    assert f"cannot listen at 127.0.0.1:{port}" in told
    assert "leave --port out" in told


@pytest.mark.parametrize("port", ["-1", "65536", "x"])
def test_a_port_that_is_none(tmp_path: Path, capsys, port: str) -> None:
    assert "--port" in refused([str(tmp_path), "--port", port], capsys)


def test_what_is_no_run_of_a_scope(tmp_path: Path, capsys) -> None:
    Store.create(tmp_path / "runs" / "demo", {"study": "demo"})
    (tmp_path / "file").touch()
    assert "normscope report" in refused([str(tmp_path / "runs" / "demo")], capsys)
    assert "holds runs" in refused([str(tmp_path / "runs")], capsys)
    assert "is a file" in refused([str(tmp_path / "file")], capsys)
    assert "a token has" in refused([str(tmp_path), "--token", "x"], capsys)
    assert "no address" in refused([str(tmp_path), "--host", "no.such.host.invalid"], capsys)
