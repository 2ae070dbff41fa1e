"""A limit to how long a rule waits for one thing: a measurement, or passes of its own.

**What can be interrupted.** On the main thread of a Unix process an alarm ends the wait: in the user's own code (loss,
step, loader), in a loader's and in a module's call, between two lines of Python. A call into C that does not return,
such as one huge product or a wait for a GPU, ends first; a sleep, a read and a wait for a loader's workers end at once.
This package's own code is never interrupted, nor is what enters or leaves a ``with`` block, so that everything is put
back. **Elsewhere** (another thread, Windows) nothing is interrupted: a rule that has waited too long is ended when it
asks for its next measurement.
"""

import _weakrefset
import contextlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from torch import nn
from torch.utils import data

from normscope._errors import Interruption, UsageError
from normscope.evidence import evidence
from normscope.usercode import is_users

_AGAIN = 0.02  # seconds until the next try, where what runs must not be interrupted
_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_CALLS = (nn.modules.module.__file__, str(Path(data.__file__).parent))
_WEAK = (weakref.__file__, _weakrefset.__file__)  # what they or a `__del__` raise, Python prints and forgets
_BOUNDARIES = ("__enter__", "__exit__", "close")  # of a block: they keep, and put back


class OverTimeError(Interruption):
    """A rule has waited too long.

    Args:
        what: What was waited for.
        seconds: The limit.
        place: Where the user's code was, as ``train.py:12``; empty if that is not known.
    """

    def __init__(self, what: str, seconds: float, place: str = "") -> None:
        super().__init__(f"{what} took longer than the limit of {seconds:g} s" + (f" ({place})" if place else ""))
        self.what, self.seconds, self.place = what, seconds, place


class TimeLimit:
    """Ends what takes too long; stands in for the function that is told what is being measured.

    Args:
        seconds: How long a rule waits for one thing; without end if None.
        told: Called with what is being measured, in words.

    Raises:
        UsageError: The limit is no number above 0.
    """

    def __init__(self, seconds: float | None, told: Callable[[str], None] | None = None) -> None:
        if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
            raise UsageError(f"timeout must be a number of seconds, or None, not {type(seconds).__name__}")
        if seconds is not None and not 0 < seconds < float("inf"):
            raise UsageError(f"timeout={seconds} must be a number of seconds above 0; leave it out for no limit")
        self._seconds, self._told = seconds, told
        self._what, self._began, self._alarmed = "", 0.0, False
        self._given_up: dict[str, OverTimeError] = {}

    def __call__(self, what: str) -> None:
        """Take note of what is measured from now on.

        Raises:
            OverTimeError: It took too long already when another rule asked for it; or, where nothing can be
                interrupted, the rule has waited too long for what it asked for before.
        """
        if self._told is not None:
            self._told(what)
        if what in self._given_up:
            raise self._given_up[what].with_traceback(None)
        if self._seconds is not None and self._began and time.monotonic() - self._began > self._seconds:
            raise OverTimeError(self._what, self._seconds)
        self._what = what
        self._wind()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Limit the block.

        Args:
            what: What is waited for where no measurement is under way.

        Raises:
            OverTimeError: It took too long.
        """
        if self._seconds is None:
            yield
            return
        self._what = what
        with _alarm(self._on_alarm) as self._alarmed:
            self._wind()
            try:
                yield
            except OverTimeError as error:
                if not _is_in_evidence(error):  # the measurement that was told last had ended
                    raise OverTimeError(what, error.seconds, error.place) from None
                self._given_up.setdefault(error.what, error)
                raise
            finally:
                self._began, self._alarmed = 0.0, False

    def _wind(self) -> None:
        if self._seconds is not None:
            self._began = time.monotonic()
            if self._alarmed:
                signal.setitimer(signal.ITIMER_REAL, self._seconds, _AGAIN)

    def _on_alarm(self, _number: int, frame: FrameType | None) -> None:
        if self._seconds is not None and _may_end(frame):
            # The user's code may end a block of its own now, or take this for an error and go on: only then once more.
            signal.setitimer(signal.ITIMER_REAL, max(self._seconds, 1.0), _AGAIN)
            raise OverTimeError(self._what, self._seconds, _place(frame))


@contextmanager
def _alarm(handler: Callable[[int, FrameType | None], Any]) -> Iterator[bool]:
    """Hear the alarm, and yield whether it can be heard; a timer of the user's own goes on afterwards."""
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield False
        return
    left, interval = signal.setitimer(signal.ITIMER_REAL, 0)
    began, before = time.monotonic(), signal.signal(signal.SIGALRM, handler)
    try:
        yield True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - began), 1e-3), interval)


def _may_end(frame: FrameType | None) -> bool:
    """Return whether this package called the user's code, and not to keep something or to put it back."""
    called = False
    while frame is not None and not _is_ours(frame):
        name = frame.f_code.co_filename
        if name in _WEAK or frame.f_code.co_name == "__del__":
            return False
        called = called or is_users(name) or name.startswith(_CALLS)
        frame = frame.f_back
    while called and frame is not None and frame.f_code.co_filename != __file__:
        boundary = frame.f_code.co_name in _BOUNDARIES
        if boundary and (_is_ours(frame) or frame.f_code.co_filename == contextlib.__file__):
            return False
        frame = frame.f_back
    return called


def _place(frame: FrameType | None) -> str:
    while frame is not None and not _is_ours(frame):
        if is_users(frame.f_code.co_filename):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_PACKAGE)


def _is_in_evidence(error: BaseException) -> bool:
    found = error.__traceback__
    while found is not None:
        if found.tb_frame.f_code.co_filename == evidence.__file__:
            return True
        found = found.tb_next
    return False
