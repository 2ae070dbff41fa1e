"""Work over processes, one thread each, so that numbers do not depend on how many there are."""

import functools
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from normscope._errors import UsageError

T = TypeVar("T")
Result = TypeVar("Result")


def worker_count(workers: int | None, device: str = "cpu") -> int:
    """Return how many processes are to work.

    Args:
        workers: The number that was asked for; None for one process per core (one in all on a GPU).
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        UsageError: The number is below 1, or the device is not available.
    """
    import torch

    if device != "cpu":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"device {device!r} is not available here: use --device cpu") from error
    if workers is None:
        import joblib

        return int(joblib.cpu_count()) if device == "cpu" else 1
    if workers < 1:
        raise UsageError(f"--workers must be at least 1, got {workers}")
    return workers


def in_processes(work: Callable[[T], Result], tasks: Sequence[T], workers: int) -> Iterator[Result]:
    """Do tasks and yield what each gives as it ends, in whatever order.

    Args:
        work: Does one task. A worker process is given a copy of it.
        tasks: What is to be done.
        workers: Processes; with one, or for a single task, the work is done in this process.
    """
    if min(workers, len(tasks)) <= 1:
        for task in tasks:
            yield work(task)
        return
    import joblib

    # One thread each: sums over threads would make the last bits depend on their number. One task at a time, so that
    # an interruption loses no more than the tasks under way.
    with joblib.parallel_config("loky", n_jobs=workers, inner_max_num_threads=1):
        results = joblib.Parallel(return_as="generator_unordered", batch_size=1)(
            joblib.delayed(_work_for)(os.getpid(), work, task) for task in tasks
        )
        yield from results


def _work_for(parent: int, work: Callable[[T], Result], task: T) -> Result:
    """Do a task in a worker that ends with the process that started it."""
    _follow(parent)
    return work(task)


@functools.cache
def _follow(parent: int) -> None:
    """Watch for the parent's end: a killed parent cannot stop its workers, which would go on for nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="follow-parent").start()


@contextmanager
def one_thread() -> Iterator[None]:
    """Work on one thread, from a known state of torch's random stream; both are as before at the end."""
    import torch

    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        # Nothing draws from the global generator on purpose; should something do so, it draws the same every time.
        torch.manual_seed(0)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
