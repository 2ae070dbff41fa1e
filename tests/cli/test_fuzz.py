"""No input makes a traceback, a hang, a silent success or a stray file: hundreds of command lines, drawn from a seed.

Set ``NORMSCOPE_FUZZ_SEED`` to draw others.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from kit import hostile_commands
from kit.command_forker import CommandForker
from kit.damaged_runs import make_runs

SEED = int(os.environ.get("NORMSCOPE_FUZZ_SEED", "1"))
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
    """A folder with a whole run of each kind."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    (folder / "home").mkdir()

    def run(*words):
        ended = forker.run(words, folder, limit=120)
        assert ended.code == 0, ended

    make_runs(folder, run)
    yield folder
    shutil.rmtree(folder)


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
        if len(told) != 1 and not told[:1] == ["Usage: normscope [OPTIONS] COMMAND [ARGS]..."]:
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
    return any(name == each or name.startswith(f"{each}/") for each in allowed)


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
            line.words, folder, limit=line.limit, terminal=line.terminal, interrupt=line.interrupt,
        )  # fmt: skip
        return ended, faults(line, ended, before, _listed(folder) if folder.is_dir() else before)
    finally:
        if folder.is_dir():
            hostile_commands.empty(folder)
