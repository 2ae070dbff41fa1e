"""The executors, and how a user names one in words."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, TypeVar, runtime_checkable

from normscope._errors import UsageError, shown
from normscope._unit import near
from normscope.running.local import LocalExecutor
from normscope.running.on_ray import RayExecutor
from normscope.running.on_slurm import SlurmExecutor
from normscope.running.work import Work
from normscope.running.workers import worker_count

Task = TypeVar("Task")
Result = TypeVar("Result")


@runtime_checkable
class Executor(Protocol):
    """Where tasks are done. The process that calls `run` is the only one that writes records.

    Attributes:
        remote: Whether workers may be on other machines: then this process needs no GPU itself, and the data travel
            with the work.
    """

    @property
    def remote(self) -> bool:
        """Whether workers may be on other machines."""

    def run(self, work: Work[Task, Result], tasks: Sequence[Task], *, gpus: int = 0) -> Iterator[Result]:
        """Do tasks and yield what each gives as it ends, in whatever order.

        Args:
            work: Called with a task in a worker process; ``work.names(task)`` is its name in messages.
            tasks: What is to be done.
            gpus: GPUs that each task needs.

        Raises:
            UsageError: A worker died twice at a task; all other results were yielded before.
            Exception: What the work raised.
        """


def executor_of(given: "str | Executor | None", workers: int | None = None, device: str = "cpu") -> Executor:
    """Return the executor that a user names.

    Args:
        given: ``"local"`` (the default), ``"ray"``, ``"slurm"``, with options as in ``"ray:address=auto"`` or
            ``"slurm:partition=long,timeout_min=60"``; or an executor, which is returned as it is.
        workers: Tasks at a time; None for one per core of this machine (one in all on a GPU), and for as many as a
            cluster lets run.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        UsageError: An unknown name or option, its package is not installed, the number of workers is below 1, or this
            machine has no such device and is to do the work.
    """
    given = "local" if given is None else given
    if not isinstance(given, str):
        if isinstance(given, Executor):
            return given
        raise UsageError(f"an executor is {_choices()} or an object with `run` and `remote`, not {shown(given)}")
    name, _, words = given.strip().partition(":")
    if name not in _MAKERS:
        raise UsageError(f"no executor {name!r}: did you mean {near(name, list(_MAKERS))}? It is {_choices()}")
    make = _MAKERS[name]
    executor = make(workers, **_options(name, words, make))
    count = worker_count(workers, device, remote=executor.remote)
    return LocalExecutor(count) if isinstance(executor, LocalExecutor) else executor


@contextmanager
def connected(given: "str | Executor | None", workers: int | None = None, device: str = "cpu") -> Iterator[Executor]:
    """Yield the executor that a user names, with one connection for all that is run in the block.

    Args:
        given: This and the rest are as `executor_of` takes them.
        workers: Tasks at a time.
        device: Where the work is computed.
    """
    executor = executor_of(given, workers, device)
    block: Any = executor if hasattr(executor, "__enter__") else nullcontext()
    with block:
        yield executor


_MAKERS: Mapping[str, Callable[..., Executor]] = {
    "local": LocalExecutor,
    "ray": RayExecutor,
    "slurm": SlurmExecutor,
}


def _choices() -> str:
    return ", ".join(_MAKERS)


def _options(name: str, words: str, make: Callable[..., Executor]) -> dict[str, Any]:
    """Read ``key=value,key=value``; each option is an argument of the executor, and has its type."""
    known = {
        option: parameter
        for option, parameter in inspect.signature(make).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    found: dict[str, Any] = {}
    for word in filter(None, (word.strip() for word in words.split(","))):
        option, equals, value = word.partition("=")
        if option not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise UsageError(f"the executor {name} has no option {option!r}: {has}")
        if not equals or not value:
            raise UsageError(f"an option of an executor is KEY=VALUE, such as {option}=1; got {word!r}")
        kind = type(known[option].default)
        try:
            found[option] = kind(value) if kind in (int, float) else value
        except ValueError:
            number = "a whole number" if kind is int else "a number"
            raise UsageError(f"the option {option} of the executor {name} is {number}, not {value!r}") from None
    return found
