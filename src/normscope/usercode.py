"""Run a user's code: what it raises becomes one line, what it prints stays out of what a program reads."""

import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

from normscope._errors import NormscopeError, UsageError

_LONGEST = 300
_LIBRARIES = (str(Path(__file__).parents[1]) + os.sep, sysconfig.get_path("stdlib") + os.sep)


@contextmanager
def one_line(doing: str) -> Iterator[None]:
    """Have any exception said in one line, with the line of the user's code from which it came.

    Raises:
        UsageError: In place of any exception but this package's own and an interrupt.
    """
    try:
        yield
    except NormscopeError as error:
        cause = error.__cause__
        place = where(cause) if cause is not None else ""
        if place and place not in str(error):
            raise type(error)(f"{_flat(error)} ({place})") from None
        raise
    except KeyboardInterrupt:
        raise
    except (Exception, SystemExit) as error:
        place = where(error)
        raise UsageError(f"{doing} raised {said(error)}{f' ({place})' if place else ''}") from None


def said(error: BaseException) -> str:
    """Return the kind of an exception and what it says, in one line."""
    text = _flat(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def where(error: BaseException) -> str:
    """Return file and line of the innermost frame outside libraries; empty if there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        name = frame.filename
        if not name.startswith(("<", *_LIBRARIES)) and "site-packages" not in name:
            return f"{Path(name).name}:{frame.lineno}"
    return ""


def _flat(error: BaseException) -> str:
    with suppress(Exception):  # a __str__ of the user's own may raise
        text = " ".join(str(error).split())
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return ""


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send what is printed to standard error, also by libraries and child processes that know the descriptor only."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    held = sys.stdout
    try:
        kept = os.dup(1)
    except OSError:  # there is no standard output
        kept = -1
    try:
        if kept >= 0:
            with suppress(OSError):
                os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        for stream in (held, sys.__stdout__):
            if stream is not None:
                with suppress(OSError, ValueError):
                    stream.flush()
        if kept >= 0:
            os.dup2(kept, 1)
            os.close(kept)
