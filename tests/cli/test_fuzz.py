"""No input makes a traceback, a hang, a silent success or a stray file: hundreds of command lines, drawn from a seed.

Set ``NORMSCOPE_FUZZ_SEED`` to draw others.
"""

import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from kit import damaged_runs, hostile_commands
from kit.command_forker import CommandForker, Ended

SEED = int(os.environ.get("NORMSCOPE_FUZZ_SEED", "1"))
KINDS = ("value", "words", "path", "run", "data", "script", "study", "checkpoint", "settings")
_PROGRESS = re.compile(r"[\w ,-]+: \d+ of \d+")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@pytest.fixture(scope="module")
def forker():
    with tempfile.TemporaryFile("w+") as errors:
        forker = CommandForker(errors)
        yield forker
        forker.close()


@pytest.fixture(scope="module")
def made(forker):
    """A folder with the files that most lines name."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "home").mkdir()
    damaged_runs.make_files(folder, _runs_well(forker, folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def made_all(made, forker):
    """The same folder with a whole run of each kind."""
    damaged_runs.make_runs(made, _runs_well(forker, made))
    return made


def _runs_well(forker, folder):
    def run(*words):
        ended = forker.run(words, folder, limit=300)
        assert ended.code == 0, ended

    return run


def faults(line, ended, before, after):
    """Return what is wrong with how a command line ended, in words."""
    said = [] if line.loud else ended.stderr.splitlines()
    found = []
    if ended.code is None:
        found.append("it hangs")
    elif ended.code not in (0, 1, 2) and not (ended.code == 130 and "interrupts" in line.what):
        found.append(f"exit code {ended.code}")
    text = ended.stdout + ended.stderr
    if "Traceback" in text or "Exception ignored" in text:
        found.append("a traceback")
    if "normscope's own" in text:
        found.append("a fault of its own")
    if ended.code == 2 and not line.terminal and not line.loud:
        told = [each for each in said if not _PROGRESS.fullmatch(each)]
        if len(told) != 1 and not (told and told[0].startswith("Usage: normscope ")):
            found.append(f"{len(said)} lines")
    if ended.code in (1, 2) and not text.strip():
        found.append("no word")
    if ended.code == 0 and not text.strip():
        found.append("success without a word")
    if line.terminal and not line.loud and _CONTROL.search(ended.stdout):
        found.append("control characters")
    stray = [name for name in after if name not in before and not _allowed(name, line.may_write)]
    changed = [name for name in before if after.get(name) != before[name] and not _allowed(name, line.may_write)]
    if stray or changed:
        found.append(f"wrote {stray[:3]}, changed {changed[:3]}")
    return found


def _allowed(name, allowed):
    return "." in allowed or any(name == each or name.startswith(f"{each}/") for each in allowed)


def _listed(folder):
    """Return time and size of every file below a folder, by its path."""
    found = {}
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = os.path.join(place, name)
            status = os.lstat(path)
            is_folder = name in folders and not os.path.islink(path)
            found[os.path.relpath(path, folder)] = None if is_folder else (status.st_mtime_ns, status.st_size)
    return found


def tried(forker, line):
    """Type a line in a folder of its own; return how it ended and what is wrong with that."""
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        (folder / "home").mkdir()
        line.prepare(folder)
        before = _listed(folder)
        ended = forker.run(
            line.words,
            folder,
            limit=line.limit,
            terminal=line.terminal,
            interrupt=line.interrupt,
        )
        return ended, faults(line, ended, before, _listed(folder) if folder.is_dir() else before)
    finally:
        if folder.is_dir():
            hostile_commands.empty(folder)


def failures(forker, lines):
    """Type lines; return those that went wrong, each with how to see it."""
    found = []
    for line in lines:
        ended, wrong = tried(forker, line)
        if wrong:
            said = ascii((ended.stdout + ended.stderr)[-600:])
            found.append(f"{line.kind}: {line.what}: {ascii(line.words)[:300]}: {wrong} {said}")
    return found


def test_a_sample_of_wrong_lines_is_answered_in_a_line(forker, made):
    """Of each kind that trains nothing."""
    lines = [line for line in hostile_commands.lines(SEED, made) if not line.needs_runs]
    quick = [line for line in lines if line.kind in ("value", "words", "path", "checkpoint", "settings")]
    sample = [
        line for line in quick if "report" in line.words or not {"compare", "run", "demo", "bench"} & {*line.words}
    ]
    found = failures(forker, [line for line in sample if line.interrupt is None][:30])
    assert not found, "\n".join(found)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_lines_of_a_kind_are_answered_in_a_line(forker, made_all, kind):
    lines = [line for line in hostile_commands.lines(SEED, made_all) if line.kind == kind]
    found = failures(forker, lines)
    assert not found, "\n".join(found)


def test_there_are_lines_of_all_kinds_for_all_commands(made):
    lines = hostile_commands.lines(SEED, made)
    assert len(lines) >= 600
    assert {line.kind for line in lines} == set(KINDS)
    typed = {" ".join(line.words) for line in lines}
    for words in (
        "demo",
        "check",
        "compare",
        "study list",
        "study show",
        "study run",
        "study new",
        "study calibrate",
        "explain",
        "report",
        "watch",
        "bench probes",
        "bench layers",
        "bench check",
        "example",
        "rules",
        "probes",
        "layers",
        "completion",
    ):
        assert any(f"{each} ".startswith(f"{words} ") for each in typed), words


OK = Ended(0, "done\n", "", 0.1)
REFUSED = Ended(2, "", "normscope: no such thing\n", 0.1)


@pytest.mark.parametrize(
    ("ended", "wrong"),
    [
        (OK, []),
        (REFUSED, []),
        (replace(REFUSED, code=None), ["it hangs"]),
        (replace(REFUSED, code=-9), ["exit code -9"]),
        (replace(REFUSED, stderr="Traceback (most recent call last):\n"), ["a traceback"]),
        (replace(REFUSED, stderr="normscope: a fault of normscope's own: KeyError\n"), ["a fault of its own"]),
        (replace(REFUSED, stderr="normscope: one\nnormscope: two\n"), ["2 lines"]),
        (replace(REFUSED, stderr="runs: 1 of 4\nnormscope: two\n"), []),
        (replace(REFUSED, stderr=""), ["0 lines", "no word"]),
        (replace(OK, stdout=""), ["success without a word"]),
    ],
)
def test_what_is_wrong_with_an_end_is_seen(ended, wrong):
    assert faults(hostile_commands.Line("words", "planted", ()), ended, {}, {}) == wrong


def test_control_characters_and_stray_files_are_seen():
    line = hostile_commands.Line("words", "planted", (), terminal=True)
    assert faults(line, replace(OK, stdout="a\x1b[31mb\n"), {}, {}) == ["control characters"]
    before = {"kept": (1, 2), "changed": (1, 2), "out/old": (1, 2)}
    after = {"kept": (1, 2), "changed": (3, 2), "out/old": (3, 2), "out/new": (3, 2), "outside": None}
    assert faults(line, OK, before, after) == ["wrote ['outside'], changed ['changed']"]


def test_what_hangs_is_ended_with_all_that_it_started(forker, tmp_path):
    (tmp_path / "script.py").write_text("import subprocess\nsubprocess.run(['sleep', '600'])\n", encoding="utf-8")
    ended = forker.run(("check", "script.py:make"), tmp_path, limit=2)
    assert ended.code is None
    assert forker.run(("--version",), tmp_path, limit=60).code == 0


def test_a_command_obeys_permissions_also_as_an_administrator(forker, tmp_path):
    (tmp_path / "closed.py").write_text("x = 1\n", encoding="utf-8")
    (tmp_path / "closed.py").chmod(0)
    ended = forker.run(("check", "closed.py:make"), tmp_path, limit=60)
    assert (ended.code, "Permission denied" in ended.stderr) == (2, True)
