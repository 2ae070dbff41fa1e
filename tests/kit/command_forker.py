"""Run command lines in forks of one process that has imported everything: fast, and none can harm another.

As a script, ``python -m kit.command_forker``, it reads jobs and writes results, a line of JSON each.
"""

import atexit
import contextlib
import ctypes
import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from kit.executed import paths

_MEMORY = 6 << 30  # bytes that a command may take: what asks for more fails, and the machine lives
_FILE = 200 << 20  # bytes of a file that a command writes


@dataclass(frozen=True)
class Ended:
    """How a command line ended: exit code (None if it was killed at its limit), what it printed, seconds."""

    code: int | None
    stdout: str
    stderr: str
    seconds: float


class CommandForker:
    """Runs one command line at a time, each in a process of its own and in a folder of its own."""

    def __init__(self, errors):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1", "COLUMNS": "100"}
        environment["PYTHONPATH"] = paths()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "kit.command_forker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )

    def run(self, words, folder, *, limit, terminal=False, interrupt=None):
        """Run a command line and return how it ended.

        Args:
            words: The words after the program's name.
            folder: The current folder of the command.
            limit: Seconds after which it is killed, with all processes that it started.
            terminal: Whether standard output and standard error are a terminal; what is printed is then ``stdout``.
            interrupt: Seconds after which the command is interrupted, as by Ctrl-C; None for never.
        """
        job = {"words": words, "folder": str(folder), "limit": limit, "terminal": terminal}
        job["interrupt"] = interrupt
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Ended(**json.loads(self._process.stdout.readline()))

    def close(self):
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()


def _import_all():
    from normscope import (
        bench,
        builders,
        checking,
        cli,
        comparing,
        explain,
        live,
        probes,
        report,
        rules,
        seen,
        studies,
        surgery,
        verdicts,
        watching,
    )
    from normscope.examples import digits_cnn
    from normscope.studies.lab.data import load

    assert [bench, builders, checking, cli, comparing, explain, live, report, seen, surgery, verdicts, watching]
    assert digits_cnn
    load("digits")
    studies.all(), rules.all(), probes.all()
    gc.freeze()  # a collection in a fork would copy the whole heap


def _serve():
    jobs, results = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    _import_all()
    for line in jobs:
        job = json.loads(line)
        ended = _forked(job)
        if ended is None:  # this is the fork, in which the command is to run
            return job["words"]
        results.write(json.dumps(asdict(ended)) + "\n")
        results.flush()
    return None


def _forked(job):
    """Fork; return how the fork ended, and in the fork itself None."""
    out, err = (os.memfd_create("out"), os.memfd_create("err")) if not job["terminal"] else os.openpty()[::-1]
    began = time.monotonic()
    child = os.fork()
    if not child:
        _settle(job, out, out if job["terminal"] else err)
        return None
    if job["terminal"]:
        os.close(out)
        seen, code = _watched(child, job, began, err)
        os.close(err)
        return Ended(code, seen.decode("utf-8", "replace").replace("\r\n", "\n"), "", time.monotonic() - began)
    _, code = _watched(child, job, began, None)
    texts = []
    for handle in (out, err):
        os.lseek(handle, 0, os.SEEK_SET)
        with os.fdopen(handle, "rb") as file:
            texts.append(file.read(1_000_000).decode("utf-8", "replace"))
    return Ended(code, *texts, time.monotonic() - began)


def _settle(job, out, err):
    """Make a forked process look like one that a shell has started."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(out, 1)
    os.dup2(err, 2)
    keep = 3
    os.closerange(keep, 256)
    folder = Path(job["folder"])
    os.chdir(folder)
    os.umask(0o022)
    sys.stdin = os.fdopen(0, closefd=False)
    buffering = 1 if job["terminal"] else -1
    sys.stdout = sys.__stdout__ = os.fdopen(1, "w", buffering, encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    os.environ |= {"HOME": str(folder / "home"), "TERM": "dumb", "XDG_CACHE_HOME": str(folder / "home" / ".cache")}
    sys.argv = ["normscope", *job["words"]]
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE, _FILE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _obey_permissions()


def _obey_permissions():
    """Take from root the capabilities by which it reads and writes whatever the permissions are.

    Another user could not import what lies below a folder of root's.
    """
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)
        sets = (ctypes.c_uint32 * 6)()
        assert libc.capget(header, sets) == 0
        for which in (0, 1):  # effective, permitted
            sets[which] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        assert libc.capset(header, sets) == 0


def _watched(child, job, began, terminal):
    """Wait for a process to its limit; return what came out of its terminal, and its exit code or None."""
    seen, interrupted = b"", False
    while True:
        if terminal is not None and select.select([terminal], [], [], 0.02)[0]:
            with contextlib.suppress(OSError):  # nobody holds the other end
                seen += os.read(terminal, 65536)
                if len(seen) < 1_000_000:
                    continue
        ended, status = os.waitpid(child, os.WNOHANG)
        after = time.monotonic() - began
        if ended:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL)  # processes that it left behind
            return seen, os.waitstatus_to_exitcode(status)
        if job["interrupt"] is not None and after > job["interrupt"] and not interrupted:
            interrupted = True
            os.kill(child, signal.SIGINT)
        if after > job["limit"]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return seen, None
        if terminal is None:
            time.sleep(0.005)


def _end(words):
    """Run the command line and end as the interpreter would, without taking a large heap apart piece by piece."""
    from normscope.cli import main

    code = 0
    try:
        main(words)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(ValueError, AttributeError):  # the user's code has closed it, or put another there
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    words = _serve()
    if words is not None:
        _end(words)
