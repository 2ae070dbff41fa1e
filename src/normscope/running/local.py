"""Work over processes of this machine, one thread each; or over a joblib backend that the user has set."""

import functools
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from normscope._errors import UsageError
from normscope.running import pickling
from normscope.running.work import Sealed, Work, describe_deaths, do_sealed, result_of
from normscope.running.workers import worker_count
from normscope.usercode import described

Task = TypeVar("Task")
Result = TypeVar("Result")


class LocalExecutor:
    """Processes of this machine, which end with the process that started them.

    A worker that is killed, for want of memory perhaps, is not the end: the tasks that it did not finish are run again,
    those that were under way each alone. A backend set by ``joblib.parallel_config`` is used in place of processes.

    Args:
        workers: Processes, None for one per core; with one, or for a single task, the work is done in this process.
    """

    def __init__(self, workers: int | None = None) -> None:
        self._workers = worker_count(workers)

    @property
    def remote(self) -> bool:
        """Whether the user has set a backend of joblib, such as Dask, whose workers may be on other machines."""
        return _users_backend() is not None

    def run(self, work: Work[Task, Result], tasks: Sequence[Task], *, gpus: int = 0) -> Iterator[Result]:
        """Do tasks and yield what each gives as it ends, in whatever order.

        Args:
            work: Does one task.
            tasks: What is to be done.
            gpus: Of no effect: processes of one machine share its GPUs.

        Raises:
            UsageError: A worker died twice at a task; all other results were yielded before.
        """
        if backend := _users_backend():
            yield from _over_backend(work, tasks, backend)
        elif min(self._workers, len(tasks)) <= 1:
            yield from map(work, tasks)
        else:
            yield from _over_processes(work, tasks, min(self._workers, len(tasks)))


def _users_backend() -> str | None:
    """Return the name of the backend of joblib that the user has set; None for joblib's own default."""
    import joblib

    backend, _ = joblib.parallel.get_active_backend()
    name = type(backend).__name__
    return None if name == "LokyBackend" else name.removesuffix("Backend")


def _over_backend(work: Work[Task, Result], tasks: Sequence[Task], name: str) -> Iterator[Result]:
    import joblib

    sealed = Sealed.of(work)
    given = joblib.Parallel(return_as="generator_unordered", batch_size=1)(
        joblib.delayed(do_sealed)(sealed, pickling.dumps(task)) for task in tasks
    )
    while True:
        try:
            result = next(given)
        except StopIteration:
            return
        except Exception as error:  # not of the work: its exceptions come as results
            raise UsageError(f"joblib's backend {name} failed: {described(error)}") from error
        yield result_of(result)


def _over_processes(work: Work[Task, Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    left = dict(enumerate(tasks))
    killed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="normscope-") as folder:
        while left:
            try:
                for index, result in _pool(work, left, workers, Path(folder)):
                    del left[index]
                    yield result
            except BrokenProcessPool as error:
                begun = [index for index in left if (Path(folder) / str(index)).exists()]
                if not begun:  # processes that do not even begin would be started for ever
                    raise UsageError(f"worker processes end before they begin: {described(error)}") from error
            else:
                break
            for index in begun:
                task = left.pop(index)
                try:
                    _, result = next(_pool(work, {index: task}, 2, Path(folder)))
                except BrokenProcessPool:
                    killed.append(work.names(task))
                else:
                    yield result
    if killed:
        raise describe_deaths(killed, "fewer --workers leave more memory to each")


def _pool(work: Work[Task, Result], tasks: dict[int, Task], workers: int, begun: Path) -> Iterator[tuple[int, Result]]:
    """Do numbered tasks over processes.

    Args:
        work: Does one task; a process is given a copy of it.
        tasks: The tasks by their numbers.
        workers: Processes.
        begun: Folder in which a file with its number stands for each task that is under way.
    """
    import joblib

    # A process whose memory has grown is replaced between two tasks; nothing is lost, and nothing is to be done.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
    # One thread each: sums over threads would make the last bits depend on their number. One task at a time, so that
    # an interruption loses no more than the tasks under way.
    with joblib.parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
        results = joblib.Parallel(return_as="generator_unordered", batch_size=1)(
            joblib.delayed(_work_for)(os.getpid(), work, index, task, begun) for index, task in list(tasks.items())
        )
    try:
        while True:  # not from: what ends the iteration must not reach joblib first, which would warn
            yield next(results)
    except StopIteration:
        return
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that tasks were under way, of which the error itself tells
            results.close()


def _work_for(parent: int, work: Work[Any, Any], index: int, task: Any, begun: Path) -> tuple[int, Any]:
    """Do a task in a worker that ends with the process that started it."""
    _follow(parent)
    mark = begun / str(index)
    with suppress(OSError):  # without the mark a lost worker ends the run, as any other error does
        mark.touch()
    try:
        return index, work(task)
    finally:
        mark.unlink(missing_ok=True)


@functools.cache
def _follow(parent: int) -> None:
    """Watch for the parent's end: a killed parent cannot stop its workers, which would go on for nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="follow-parent").start()
