"""Work over a Ray cluster, or over the Ray that is started on this machine for it."""

import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from normscope._errors import UsageError
from normscope.running import pickling
from normscope.running.work import Sealed, Work, describe_deaths, do_sealed, result_of
from normscope.running.workers import worker_count
from normscope.usercode import described

Task = TypeVar("Task")
Result = TypeVar("Result")

_REACHED_IN = 3.0  # seconds in which a machine takes a connection
_ANSWERS_IN = 12.0  # seconds in which Ray answers there; Ray itself tries for minutes, then ends the process
_LEAST_IN_FLIGHT, _IN_FLIGHT_A_CPU = 64, 4
_PROBE = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='CRITICAL')"


class RayExecutor:
    """Tasks of Ray: one CPU each, and a GPU where the work needs it. Tasks on a node that is lost run again elsewhere.

    Use it as a context manager to keep one connection for several calls of `run`. A Ray that the process has
    initialised already is used, and left as it is.

    Args:
        workers: Tasks at a time at most, where Ray is started here, None for one per core; a cluster decides itself.
        address: Of the cluster, such as ``"auto"``, ``"10.0.0.1:6379"`` or ``"ray://10.0.0.1:10001"``; empty for
            the environment variable ``RAY_ADDRESS``. Without an address Ray is started on this machine.

    Raises:
        UsageError: Ray is not installed.
    """

    remote = True

    def __init__(self, workers: int | None = None, *, address: str = "") -> None:
        _ray()
        self._workers = workers
        self._address = address or os.environ.get("RAY_ADDRESS", "")
        self._opened = 0
        self._is_ours = False

    def __enter__(self) -> Self:
        ray = _ray()
        if self._opened == 0:
            self._is_ours = not ray.is_initialized()
            if self._is_ours:
                self._connect(ray)
        self._opened += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._opened -= 1
        if self._opened == 0 and self._is_ours:
            _ray().shutdown()

    def run(self, work: Work[Task, Result], tasks: Sequence[Task], *, gpus: int = 0) -> Iterator[Result]:
        """Do tasks and yield what each gives as it ends, in whatever order.

        Args:
            work: Does one task; it is put into Ray's object store once, with its data.
            tasks: What is to be done.
            gpus: GPUs that each task asks Ray for.

        Raises:
            UsageError: The cluster cannot be reached, there is no GPU, or a worker died twice at a task; all other
                results were yielded before.
        """
        with self:
            ray = _ray()
            if gpus and self._is_ours and not self._address and ray.cluster_resources().get("GPU", 0) < gpus:
                # A cluster may yet grow a node with a GPU; this machine would have the tasks wait for ever.
                raise UsageError(
                    "the work needs a GPU, and Ray finds none on this machine: name a cluster by ray:address="
                )
            yield from _Flight(ray, work, tasks, gpus).results()

    def _connect(self, ray: Any) -> None:
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        if self._address and self._address != "local":
            _require_answer(self._address)
            options: dict[str, Any] = {"address": self._address}
        else:
            options = {"address": "local", "num_cpus": worker_count(self._workers), "include_dashboard": False}
        try:
            ray.init(**options, **quiet)
        except Exception as error:
            where = f"connect to Ray at {self._address}" if self._address else "start Ray on this machine"
            raise UsageError(f"cannot {where}: {described(error)}") from error


class _Place(NamedTuple):
    """A task under way: its number, and how often a worker has died at it."""

    number: int
    deaths: int = 0


class _Flight:
    """The tasks of one call of `run`: some wait, some are under way."""

    def __init__(self, ray: Any, work: Work[Any, Any], tasks: Sequence[Any], gpus: int) -> None:
        self._ray, self._work, self._tasks = ray, work, tasks
        sealed = Sealed.of(work)
        content = _Stored(ray.put(sealed.content))
        self._sealed = Sealed(sealed.versions, sealed.key, content)
        # Retries are counted here: Ray's own do not tell a lost node, which says nothing of the task, from a task that
        # kills every worker, and would try that for ever. A worker that has a GPU is not kept for tasks without.
        self._remote = ray.remote(do_sealed).options(num_cpus=1, num_gpus=gpus, max_retries=0)
        self._under_way: dict[Any, _Place] = {}
        self._killed: list[str] = []

    def results(self) -> Iterator[Any]:
        """Yield results; whatever ends the iteration, no task stays under way."""
        waiting = deque(_Place(index) for index in range(len(self._tasks)))
        cpus = int(self._ray.cluster_resources().get("CPU", 1))
        most = max(_LEAST_IN_FLIGHT, _IN_FLIGHT_A_CPU * cpus)  # a scheduler is not flooded by 100,000 tasks
        try:
            while waiting or self._under_way:
                while waiting and len(self._under_way) < most:
                    place = waiting.popleft()
                    reference = self._remote.remote(self._sealed, pickling.dumps(self._tasks[place.number]))
                    self._under_way[reference] = place
                (done,), _ = self._ray.wait(list(self._under_way), num_returns=1)
                place = self._under_way.pop(done)
                try:
                    result = self._ray.get(done)
                except Exception as error:
                    waiting.extend(self._again(place, error))
                else:
                    yield result_of(result)
        finally:
            for reference in self._under_way:
                with suppress(Exception):  # the cluster may be gone
                    self._ray.cancel(reference, force=True)
        if self._killed:
            raise describe_deaths(self._killed)

    def _again(self, place: _Place, error: Exception) -> list[_Place]:
        """Return the task for another try, or note that it is given up."""
        lost = self._ray.exceptions
        if isinstance(error, lost.NodeDiedError):
            return [place]
        if isinstance(error, lost.WorkerCrashedError | lost.OutOfMemoryError):
            if place.deaths == 0:
                return [_Place(place.number, 1)]
            self._killed.append(self._work.names(self._tasks[place.number]))
            return []
        if "No module named 'normscope" in str(error):
            raise UsageError(
                "the workers of the Ray cluster lack this version of normscope: install it there"
            ) from error
        raise UsageError(f"Ray failed: {described(error)}") from error


class _Stored:
    """Bytes in Ray's object store, fetched when they are asked for."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def __call__(self) -> bytes:
        found: bytes = _ray().get(self._reference)
        return found


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError("the executor ray needs Ray: pip install 'normscope[ray]'") from None
    return ray


def _require_answer(address: str) -> None:
    """Refuse an address at which no Ray answers in time.

    Raises:
        UsageError: As said.
    """
    advice = "check the address and that the cluster runs"
    if address != "auto":
        place = urlsplit(address if "://" in address else f"//{address}")
        try:
            host, port = place.hostname, place.port
        except ValueError:
            host = port = None
        if not host or not port:
            raise UsageError(f"an address of a Ray cluster is HOST:PORT, ray://HOST:PORT or auto, not {address!r}")
        try:
            socket.create_connection((host, port), timeout=_REACHED_IN).close()
        except OSError as error:
            raise UsageError(f"no Ray cluster at {address} ({error.strerror or error}): {advice}") from None
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE, address], capture_output=True, text=True, timeout=_ANSWERS_IN, check=False
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"no Ray cluster answers at {address} within {_ANSWERS_IN:.0f} s: {advice}") from None
    if done.returncode:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given")
        raise UsageError(f"cannot connect to Ray at {address}: {reason.strip()[:300]}")
