"""Work as jobs of SLURM, by submitit; or as submitit's processes on this machine, to try a command out."""

import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from normscope._errors import UsageError
from normscope.running import pickling
from normscope.running.work import Sealed, Work, describe_deaths, do_sealed, result_of
from normscope.usercode import described

Task = TypeVar("Task")
Result = TypeVar("Result")

_ARRAY = 1000  # tasks of an array: SLURM takes 1001 unless its administrator has set MaxArraySize
_ARRIVES_IN = 15.0  # seconds in which a result appears on a slow file system after its job has ended
_PAUSE = 1.0  # seconds between two looks at the jobs: each look asks the shared file system


class SlurmExecutor:
    """Arrays of SLURM's jobs, a task each. A job that is lost or runs out of time is submitted once more.

    Args:
        workers: Jobs at a time at most; None for as many as SLURM lets run.
        partition: Of the cluster; SLURM's own default if empty.
        timeout_min: Minutes that a task may take.
        gpus_per_node: GPUs of a job; at least those that the work needs.
        cpus_per_task: CPUs of a job, which works on one thread.
        tasks_per_job: Tasks that a job does one after the other; for short cells, since a job takes seconds to start.
        mem_gb: Memory of a job; SLURM's own default if 0.
        account: Account that is charged.
        qos: Quality of service.
        cluster: ``"slurm"``, or ``"local"`` for processes of this machine.
        folder: Shared folder of submitit's files; ``slurm`` inside the run's folder if empty.

    Raises:
        UsageError: submitit or SLURM is missing.
    """

    remote = True

    def __init__(
        self,
        workers: int | None = None,
        *,
        partition: str = "",
        timeout_min: int = 60,
        gpus_per_node: int = 0,
        cpus_per_task: int = 1,
        tasks_per_job: int = 1,
        mem_gb: float = 0.0,
        account: str = "",
        qos: str = "",
        cluster: str = "slurm",
        folder: str = "",
    ) -> None:
        _submitit()
        if cluster not in ("slurm", "local"):
            raise UsageError(f"the option cluster of the executor slurm is slurm or local, not {cluster!r}")
        if cluster == "slurm" and (missing := [word for word in ("sbatch", "srun") if shutil.which(word) is None]):
            raise UsageError(
                f"there is no {missing[0]} here: run the command on a login node of the SLURM cluster, or try it with "
                "slurm:cluster=local"
            )
        if min(timeout_min, cpus_per_task, tasks_per_job) < 1 or gpus_per_node < 0 or mem_gb < 0:
            raise UsageError(
                "timeout_min, cpus_per_task and tasks_per_job of the executor slurm are at least 1, GPUs and memory 0"
            )
        self._tasks_per_job = tasks_per_job
        self._workers, self._gpus, self._cluster, self._folder = workers, gpus_per_node, cluster, folder
        texts = {"slurm_partition": partition, "slurm_account": account, "slurm_qos": qos}
        self._asks: dict[str, Any] = {key: text for key, text in texts.items() if text}
        self._asks |= {"timeout_min": timeout_min * tasks_per_job, "cpus_per_task": cpus_per_task, "name": "normscope"}
        if mem_gb:
            self._asks["mem_gb"] = mem_gb

    def run(self, work: Work[Task, Result], tasks: Sequence[Task], *, gpus: int = 0) -> Iterator[Result]:
        """Do tasks and yield what each gives as it ends, in whatever order.

        Args:
            work: Does one task; it is written once into the folder, with its data.
            tasks: What is to be done.
            gpus: GPUs that each task needs.

        Raises:
            UsageError: Jobs cannot be submitted, or a job was lost twice; all other results were yielded before.
        """
        if not tasks:
            return
        around = Path(self._folder).expanduser() if self._folder else (work.folder or Path.cwd()) / "slurm"
        sealed = Sealed.of(work)
        folder = around.resolve() / f"{sealed.key[:12]}-{time.time_ns():x}"
        try:
            folder.mkdir(parents=True)
            (folder / "work.pkl").write_bytes(sealed.fetched())
        except OSError as error:
            raise UsageError(f"cannot write {folder}: {error.strerror}; name another by slurm:folder=") from None
        executor = _submitit().AutoExecutor(folder=folder, cluster=self._cluster)
        wanted = max(gpus, self._gpus)
        asks = self._asks | ({"gpus_per_node": wanted} if wanted else {})
        most = self._workers if self._cluster == "local" else _ARRAY
        if self._workers is not None:
            asks["slurm_array_parallelism"] = self._workers
        executor.update_parameters(**asks)
        stored = Sealed(sealed.versions, sealed.key, _InFile(folder / "work.pkl"))
        yield from _Jobs(executor, stored, work, tasks, most or 1).results(self._tasks_per_job)
        shutil.rmtree(folder, ignore_errors=True)  # after an error it stays, with the jobs' output
        with suppress(OSError):  # not empty, or a folder of the user's
            if not self._folder:
                around.rmdir()


class _Jobs:
    """The tasks of one call of `run`: some wait, some are jobs; a job has one task or several."""

    def __init__(self, executor: Any, sealed: Sealed, work: Work[Any, Any], tasks: Sequence[Any], most: int) -> None:
        self._executor, self._sealed, self._work, self._tasks, self._most = executor, sealed, work, tasks, most
        self._jobs: dict[tuple[int, ...], Any] = {}  # by the numbers of their tasks
        self._ended: dict[tuple[int, ...], float] = {}  # since when a job has ended without a result
        self._lost: set[int] = set()
        self._killed: list[str] = []

    def results(self, each: int) -> Iterator[Any]:
        """Yield results; whatever ends the iteration, no job is left behind.

        Args:
            each: Tasks of a job.
        """
        numbers = range(len(self._tasks))
        waiting = deque(tuple(numbers[first : first + each]) for first in numbers[::each])
        try:
            while waiting or self._jobs:
                if waiting and len(self._jobs) <= self._most // 2:
                    self._submit([waiting.popleft() for _ in range(min(len(waiting), self._most - len(self._jobs)))])
                done = [group for group, job in self._jobs.items() if job.done()]
                for group in done:
                    if self._jobs[group].paths.result_pickle.exists():
                        self._ended.pop(group, None)
                        yield from map(result_of, self._given(self._jobs.pop(group)))
                    elif time.monotonic() - self._ended.setdefault(group, time.monotonic()) > _ARRIVES_IN:
                        waiting.extend(self._again(group))
                if not done or self._ended:
                    time.sleep(_PAUSE)
        finally:
            self._cancel()
        if self._killed:
            raise describe_deaths(self._killed, f"see {self._executor.folder}")

    def _submit(self, groups: list[tuple[int, ...]]) -> None:
        texts = [[pickling.dumps(self._tasks[number]) for number in group] for group in groups]
        try:
            jobs = self._executor.map_array(_do_each, [self._sealed] * len(texts), texts)
        except Exception as error:
            raise UsageError(f"cannot submit jobs to SLURM: {described(error)}") from error
        self._jobs |= dict(zip(groups, jobs, strict=True))

    def _given(self, job: Any) -> list[Any]:
        try:
            given: list[Any] = job.result()
        except Exception as error:  # not of the work: its exceptions come as results
            raise UsageError(f"a job of SLURM cannot do the work: {_last_line(error)}") from error
        return given

    def _again(self, group: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the tasks of a lost job for another try, each in a job of its own, or note that a task is given up."""
        del self._jobs[group], self._ended[group]
        self._killed += [self._work.names(self._tasks[number]) for number in group if number in self._lost]
        again: list[tuple[int, ...]] = [(number,) for number in group if number not in self._lost]
        self._lost |= set(group)
        return again

    def _cancel(self) -> None:
        if self._jobs and self._executor.cluster == "slurm":  # one call for whole arrays
            arrays = sorted({job.job_id.partition("_")[0] for job in self._jobs.values()})
            with suppress(OSError):
                subprocess.run(["scancel", *arrays], capture_output=True, check=False)
            return
        for job in self._jobs.values():
            with suppress(Exception):
                job.cancel(check=False)


def _do_each(sealed: Sealed, tasks: Sequence[bytes]) -> list[Any]:
    """Do the tasks of a job."""
    return [do_sealed(sealed, task) for task in tasks]


class _InFile:
    """Bytes in a file, read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self) -> bytes:
        return self._path.read_bytes()


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    return lines[-1][:300] if lines else described(error)


def _submitit() -> Any:
    try:
        import submitit
    except ImportError:
        raise UsageError("the executor slurm needs submitit: pip install 'normscope[slurm]'") from None
    return submitit
