"""Load and run a user's own code.

An exception in it becomes one line with the user's own file and line, and what it prints stays out of the output that a
program reads.
"""

import importlib
import importlib.util
import os
import re
import stat
import sys
import sysconfig
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn, TextIO

from normscope._errors import Interruption, NormscopeError, UsageError

_LARGEST_FILE = 10_000_000  # bytes
_LONGEST = 300  # characters of an exception's message that are kept
_LIBRARIES = (str(Path(__file__).parent) + os.sep, sysconfig.get_path("stdlib") + os.sep)


def load_file(path: str | Path) -> ModuleType:
    """Execute a Python file, whatever its suffix, and return it as a module.

    The file may import modules that lie beside it. The module is registered in ``sys.modules``, where data classes,
    pickles and worker processes look it up; if the file raises, it is removed again.

    Args:
        path: The file.

    Raises:
        UsageError: The file cannot be read, or raises; the message names the line of the user's code.
    """
    file = Path(path)
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise UsageError(f"cannot read {file}: it is no file")
        with file.open("rb") as opened:
            if len(opened.read(_LARGEST_FILE + 1)) > _LARGEST_FILE:
                raise UsageError(f"cannot read {file}: it is too large for a file of Python")
    except (OSError, ValueError) as error:  # a ValueError for a name that no file can have
        raise UsageError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    name = "normscope_user_" + re.sub(r"\W", "_", file.stem)
    spec = importlib.util.spec_from_file_location(name, file, loader=SourceFileLoader(name, str(file.resolve())))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with users_code(f"importing {file}", file), imports_from(file.resolve().parent):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def load_module(name: str) -> ModuleType:
    """Import a module by its dotted name; modules in the current folder are found too.

    Args:
        name: The name, as in an import statement.

    Raises:
        UsageError: There is no such module, or it raises while it is imported.
    """
    if not name or name.startswith("."):
        raise UsageError(f"{name!r} is no module's name, and there is no such file")
    with users_code(f"importing {name}"), imports_from(Path.cwd()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            raise UsageError(f"there is no module or file called {name}") from None


@contextmanager
def imports_from(folder: Path) -> Iterator[None]:
    """Let imports find the modules of a folder, and write no compiled files.

    Args:
        folder: Searched first. Other changes that the user's code makes to ``sys.path`` stay: later imports may rest
            on them.
    """
    searched, wrote = str(folder), sys.dont_write_bytecode
    sys.path.insert(0, searched)
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = wrote
        with suppress(ValueError):
            sys.path.remove(searched)


@contextmanager
def users_code(doing: str, file: Path | None = None) -> Iterator[None]:
    """Turn any exception of the user's code into one line that says what was being done, and where it arose.

    A process that the user's code forks and that comes to the end of the block ends there: it would do all the rest of
    the work a second time.

    Args:
        doing: What is done in the block, as the subject of the sentence "... raised ValueError: ...".
        file: A file that is the user's even if it lies among libraries. With it, this package's own errors say their
            place too, if the user's code was on the way to them.

    Raises:
        UsageError: In place of any exception but this package's own and an interrupt. The exception is its cause.
    """
    process = os.getpid()
    try:
        try:
            yield
        finally:
            if os.getpid() != process:
                os._exit(0)
    except NormscopeError as error:
        cause = error.__cause__
        place = place_of(cause, file) if cause is not None else ""
        if file is not None:
            place = place or place_of(error, file)
        if place and place not in str(error):
            raise type(error)(f"{_flat(error)} ({place})") from cause
        raise
    except (KeyboardInterrupt, GeneratorExit, Interruption):
        raise
    except BaseException as error:
        place = place_of(error, file)
        raise UsageError(f"{doing} raised {described(error)}{f' ({place})' if place else ''}") from error


def described(error: BaseException) -> str:
    """Return the kind and the message of an exception in one line, also where its ``__str__`` raises."""
    text = _flat(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place_of(error: BaseException, file: Path | None = None) -> str:
    """Return where the user's code failed, as ``train.py:12``.

    Args:
        error: The exception.
        file: A file that is the user's even if it lies among libraries.

    Returns:
        File name and line of a syntax error, else of the innermost frame outside Python's library, installed packages
        and this package; empty if there is no such frame.
    """
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno))
    own = None if file is None else str(file.resolve())
    for name, line in reversed(frames):
        if name == own or is_users(name):
            return f"{Path(name).name}:{line}"
    return ""


def warn_user(text: str, kind: type[Warning]) -> None:
    """Give a warning at the line of the user's own that is under way, however deep in libraries the call is."""
    depth, frame = 2, sys._getframe(1)
    while frame.f_back is not None and not is_users(frame.f_code.co_filename):
        depth, frame = depth + 1, frame.f_back
    if not is_users(frame.f_code.co_filename):
        depth = 2
    warnings.warn(text, kind, stacklevel=depth)


def defined_at(function: object) -> str:
    """Return where the user defined a function, as ``train.py:12``; empty if it is not the user's own Python."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code and is_users(code.co_filename) else ""


def is_users(name: str) -> bool:
    """Return whether a frame's file lies outside Python's library, installed packages and this package.

    Args:
        name: The path that the frame's code names.
    """
    return not (name.startswith(("<", *_LIBRARIES)) or "site-packages" in name)


def _flat(error: BaseException) -> str:
    with suppress(Exception):  # the user's own __str__ may raise
        # The text of a syntax error ends with its file and line, which `place_of` returns.
        text = " ".join(str(error.msg if isinstance(error, SyntaxError) else error).split())
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return ""


@contextmanager
def no_words() -> Iterator[None]:
    """Take the words of the command line away while a user's code runs: they are not meant for its own parser."""
    words = sys.argv
    sys.argv = words[:1]
    try:
        yield
    finally:
        sys.argv = words


@contextmanager
def quiet_stdout() -> Iterator[None]:
    """Send standard output to standard error, also that of libraries and child processes, which use descriptor 1."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    outer = sys.stdout
    try:
        saved = os.dup(1)
    except OSError:  # there is no standard output
        saved = -1
    try:
        if saved >= 0:
            with suppress(OSError):
                os.dup2(2, 1)
        with _beside_stderr() as stream, redirect_stdout(stream):
            yield
    finally:
        for stream in (outer, sys.__stdout__):
            if stream is not None:
                with suppress(OSError, ValueError):
                    stream.flush()
        if saved >= 0:
            os.dup2(saved, 1)
            os.close(saved)


@contextmanager
def _beside_stderr() -> Iterator[TextIO]:
    """Yield a stream to where standard error goes: a user's code may close it, and standard error stays open."""
    try:
        handle = os.dup(2)
    except OSError:  # there is no standard error
        handle = os.open(os.devnull, os.O_WRONLY)
    with open(handle, "w", buffering=1, errors="backslashreplace") as stream:
        yield stream


@contextmanager
def exits_told() -> Iterator[None]:
    """Have ``os._exit``, called in this process, end it with a line and exit code 2: a user's code may call it.

    Nothing could be caught, and the command would end in the middle of its work without a word. Processes that are
    forked meanwhile end as they like. What ends a thread of the user's is told in a line too, and the work goes on.
    """
    end, process, thread_died = os._exit, os.getpid(), threading.excepthook

    def thread_told(ended: threading.ExceptHookArgs) -> None:
        error = ended.exc_value
        place = place_of(error) if error is not None else ""
        if error is None or not place:
            thread_died(ended)
        else:
            os.write(2, f"normscope: a thread of your code raised {described(error)} ({place})\n".encode())

    def told(status: int) -> NoReturn:
        if os.getpid() == process:
            place = place_of_frame(sys._getframe(1))
            with suppress(OSError):
                os.write(2, f"normscope: your code ended the program by os._exit({status}){place}\n".encode())
            end(2)
        end(status)

    os._exit, threading.excepthook = told, thread_told
    try:
        yield
    finally:
        os._exit, threading.excepthook = end, thread_died


def place_of_frame(frame: FrameType | None) -> str:
    """Return the innermost place in a user's file among a frame and its callers, as `` (train.py:12)``, or ``""``."""
    while frame is not None and not is_users(frame.f_code.co_filename):
        frame = frame.f_back
    return "" if frame is None else f" ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
