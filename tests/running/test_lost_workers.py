"""A worker that is killed loses no work: its tasks run again, and the task that kills its worker is named."""

import functools
import os
from collections import Counter

import pytest

from kit import dying_tasks
from normscope._errors import UsageError
from normscope.running import LocalExecutor, Work

pytestmark = pytest.mark.long


def begun(folder):
    """How often each task began."""
    return Counter(path.name.partition(".")[0] for path in folder.iterdir())


def results(folder, tasks):
    work = Work(functools.partial(dying_tasks.do, str(folder)), dying_tasks.name)
    yield from LocalExecutor(2).run(work, tasks)


def test_a_task_whose_worker_was_killed_once_runs_again_alone(tmp_path):
    tasks = [{"name": f"t{index}"} for index in range(6)] + [{"name": "victim", "deaths": 1}]
    found = sorted(results(tmp_path, tasks))
    assert found == sorted(task["name"] for task in tasks)
    assert begun(tmp_path)["victim"] == 2
    assert not any(path.name.endswith(f".{os.getpid()}") for path in tmp_path.iterdir())  # never in this process


def test_all_other_tasks_are_done_before_the_task_is_named_that_kills_every_worker(tmp_path):
    tasks = [{"name": "killer", "deaths": 99}, *({"name": f"t{index}"} for index in range(6))]
    tasks.append({"name": "last", "after": "killer"})
    found = []
    with pytest.raises(UsageError, match=r"the worker died twice at the task killer \(fewer --workers") as caught:
        found.extend(results(tmp_path, tasks))
    assert sorted(found) == ["last", *(f"t{index}" for index in range(6))]
    assert "\n" not in str(caught.value)
    assert begun(tmp_path)["killer"] == 2


def test_two_tasks_that_kill_their_workers_are_counted(tmp_path):
    tasks = [{"name": "one", "deaths": 99}, {"name": "two", "deaths": 99}, {"name": "three"}]
    with pytest.raises(UsageError, match=r"at the task (one|two) and 1 more"):
        list(results(tmp_path, tasks))


def test_an_exception_of_the_work_ends_the_run_at_once(tmp_path):
    tasks = [{"name": "fails", "raises": True}, *({"name": f"t{index}"} for index in range(3))]
    with pytest.raises(ZeroDivisionError, match="fails"):
        list(results(tmp_path, tasks))
    assert begun(tmp_path)["fails"] == 1
