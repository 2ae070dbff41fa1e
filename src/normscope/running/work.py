"""Work that is done task by task, here or on another machine: what a worker verifies before, and gives back."""

import functools
import hashlib
import pickle
import platform
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from normscope._errors import NormscopeError, UsageError
from normscope.records import provenance
from normscope.running import pickling
from normscope.usercode import described

Task = TypeVar("Task")
Result = TypeVar("Result")

_PACKAGES = ("normscope", "torch")
#: A process does one task at a time, also where an engine gives it several threads: torch's settings and random stream
#: are shared by all threads.
_ALONE = threading.RLock()


def _versions() -> dict[str, str | None]:
    return {name: provenance.version(name) for name in _PACKAGES}


@dataclass(frozen=True)
class Work(Generic[Task, Result]):
    """What is done to each task of a run. An executor calls it with a task, in any process, and yields what it returns.

    Attributes:
        do: Does one task; what it holds travels with the work.
        names: Returns how a task is called in a sentence.
        folder: The run's folder, in which an engine may keep files of its own; None if there is none.
        versions: Versions of the packages of the process that made the work.
    """

    do: Callable[[Task], Result]
    names: Callable[[Task], str]
    folder: Path | None = None
    versions: Mapping[str, str | None] = field(default_factory=_versions)

    def __call__(self, task: Task) -> Result:
        """Do a task.

        Raises:
            UsageError: This process has another version of normscope or torch, or the user's code raises.
        """
        require_versions(tuple(self.versions.items()))
        with _ALONE:
            return self.do(task)


@functools.cache
def require_versions(wanted: tuple[tuple[str, str | None], ...]) -> None:
    """Refuse to work in a process with other versions than those of the run.

    Args:
        wanted: Pairs of a package and its version.

    Raises:
        UsageError: A version is another.
    """
    for name, version in wanted:
        here = provenance.version(name)
        if here != version:
            raise UsageError(
                f"a worker on {platform.node()} has {name} {here}, the run {version}: records of two versions are not "
                "replicates of one thing; install the same version there"
            )


@dataclass(frozen=True)
class Failure:
    """A task that ended in an exception, as it travels back.

    Attributes:
        error: The exception; in its place a ``UsageError`` with its text, where it cannot be pickled.
    """

    error: Exception


@dataclass(frozen=True)
class Sealed:
    """Work as bytes: the versions are compared before the bytes are read.

    Attributes:
        versions: Pairs of a package and its version, of the process that sends it.
        key: Digest of the bytes, by which a process remembers work that it has read.
        content: The bytes; or a function that fetches them, which the engine puts in their place.
    """

    versions: tuple[tuple[str, str | None], ...]
    key: str
    content: bytes | Callable[[], bytes]

    @classmethod
    def of(cls, work: Work[Any, Any]) -> "Sealed":
        """Seal work, with the data that it holds.

        Raises:
            UsageError: It cannot be pickled.
        """
        content = pickling.dumps(work)
        return cls(tuple(work.versions.items()), hashlib.sha256(content).hexdigest(), content)

    def opened(self) -> Work[Any, Any]:
        """Return the work; a process reads it once, for it may hold a large data set.

        Raises:
            UsageError: It needs a module that cannot be imported here.
        """
        if self.key not in _OPENED:
            _OPENED.clear()
            content = self.fetched()
            try:
                _OPENED[self.key] = pickling.loads(content)
            except ImportError as error:
                raise UsageError(
                    f"a worker on {platform.node()} cannot import {error.name or 'a module'} ({described(error)}): "
                    "share its folder with the workers or ship it (`ray job submit --working-dir .`)"
                ) from error
        return _OPENED[self.key]

    def fetched(self) -> bytes:
        """Return the bytes."""
        return self.content() if callable(self.content) else self.content

    def __sizeof__(self) -> int:
        # Dask sends an argument once to each worker, not with every task, if its size says that it is large.
        return object.__sizeof__(self) + (0 if callable(self.content) else len(self.content))


_OPENED: dict[str, Work[Any, Any]] = {}


def do_sealed(sealed: Sealed, task: bytes) -> Any:
    """Do one task on a worker: every engine calls this function.

    Args:
        sealed: The work.
        task: The task, as ``pickling.dumps`` returned it.

    Returns:
        The result, or a `Failure`: engines treat an exception as a lost worker, or change its class.
    """
    try:
        require_versions(sealed.versions)
        return sealed.opened()(pickling.loads(task))
    except Exception as error:
        return Failure(_portable(error))


def result_of(given: Any) -> Any:
    """Return the result that `do_sealed` gave.

    Raises:
        Exception: That of the task, where it ended in an exception.
    """
    if isinstance(given, Failure):
        raise given.error
    return given


def _portable(error: Exception) -> Exception:
    """Return an exception that another process can read."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return UsageError(f"a worker raised {described(error)}")
    return error


def describe_deaths(names: list[str], reason: str = "") -> NormscopeError:
    """Return the error that names tasks whose worker died twice.

    Args:
        names: How the tasks are called.
        reason: What the engine says of it.
    """
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    said = f" ({reason})" if reason else ""
    return UsageError(
        f"the worker died twice at {names[0]}{more}{said}: its memory may have run out, or its code ends the "
        "process; everything else is complete"
    )
