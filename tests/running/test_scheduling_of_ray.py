"""What is asked of Ray, task by task, with a stand-in for Ray that does tasks in this process."""

import sys
from types import SimpleNamespace

import pytest

from normscope._errors import UsageError
from normscope.running import RayExecutor, Work


class NodeDiedError(Exception):
    pass


class WorkerCrashedError(Exception):
    pass


class OutOfMemoryError(Exception):
    pass


class StandIn:
    """The part of Ray that is used; ``fate`` may make a task end in an error of Ray, by (task, which try)."""

    exceptions = SimpleNamespace(
        NodeDiedError=NodeDiedError, WorkerCrashedError=WorkerCrashedError, OutOfMemoryError=OutOfMemoryError
    )

    def __init__(self, fate=lambda task, attempt: None, cpus=2, gpus=1):
        self.fate, self.resources = fate, {"CPU": float(cpus), "GPU": float(gpus)}
        self.initialised = False
        self.stored, self.asked, self.cancelled, self.inits = [], [], [], []
        self.under_way, self.most, self.tries = set(), 0, {}

    def is_initialized(self):
        return self.initialised

    def init(self, **options):
        self.inits.append(options)
        self.initialised = True

    def shutdown(self):
        self.initialised = False

    def cluster_resources(self):
        return self.resources

    def put(self, value):
        self.stored.append(value)
        return ("stored", len(self.stored) - 1)

    def remote(self, function):
        def options(**asked):
            self.asked.append(asked)
            return SimpleNamespace(remote=lambda *args: self.submit(function, args))

        return SimpleNamespace(options=options)

    def submit(self, function, args):
        reference = ("task", len(self.tries), sum(self.tries.values()), object())
        self.under_way.add(reference)
        self.most = max(self.most, len(self.under_way))
        self.tries[args[1]] = self.tries.get(args[1], 0) + 1
        self.calls = getattr(self, "calls", {}) | {reference: (function, args, self.tries[args[1]])}
        return reference

    def wait(self, references, num_returns):
        return references[-1:], references[:-1]  # the last first: no order is promised

    def get(self, reference):
        if reference[0] == "stored":
            return self.stored[reference[1]]
        self.under_way.discard(reference)
        function, args, attempt = self.calls[reference]
        if error := self.fate(args[1], attempt):
            raise error
        return function(*args)

    def cancel(self, reference, force):
        self.cancelled.append(reference)


def double(number):
    if number < 0:
        raise ValueError(f"{number} is negative")
    return 2 * number


@pytest.fixture
def ray(monkeypatch):
    def install(**options):
        found = StandIn(**options)
        monkeypatch.setitem(sys.modules, "ray", found)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        return found

    return install


def run(tasks, **options):
    return list(RayExecutor(2).run(Work(double, "the number {}".format), tasks, **options))


@pytest.mark.parametrize("gpus", [0, 1])
def test_a_task_asks_for_one_cpu_and_for_the_gpus_that_it_needs(ray, gpus):
    found = ray()
    assert sorted(run(range(5), gpus=gpus)) == [0, 2, 4, 6, 8]
    assert found.asked == [{"num_cpus": 1, "num_gpus": gpus, "max_retries": 0}]
    assert len(found.stored) == 1  # the work is put once, whatever the number of tasks
    assert found.inits[0]["num_cpus"] == 2
    assert not found.initialised


def test_a_gpu_that_this_machine_lacks_is_refused_where_no_cluster_could_have_it(ray):
    found = ray(gpus=0)
    with pytest.raises(UsageError, match="Ray finds none on this machine"):
        run(range(3), gpus=1)
    assert not found.tries
    found.initialised = True  # a cluster of the user's own, which may grow
    assert len(run(range(3), gpus=1)) == 3


def test_a_ray_that_was_initialised_is_left_as_it_was(ray):
    found = ray()
    found.initialised = True
    run(range(3))
    assert found.initialised
    assert not found.inits


def test_a_block_keeps_one_connection(ray):
    found = ray()
    with RayExecutor(2) as executor:
        for _ in range(3):
            list(executor.run(Work(double, str), range(2)))
        assert found.initialised
    assert len(found.inits) == 1
    assert not found.initialised


def test_the_scheduler_is_not_flooded(ray):
    found = ray(cpus=40)
    assert len(run(range(1000))) == 1000
    assert found.most == 160


def test_a_lost_node_says_nothing_of_its_task_however_often_it_happens(ray):
    ray(fate=lambda task, attempt: NodeDiedError() if attempt < 6 else None)
    assert sorted(run(range(4))) == [0, 2, 4, 6]


@pytest.mark.parametrize("error", [WorkerCrashedError, OutOfMemoryError])
def test_a_task_whose_worker_dies_is_tried_once_more_and_then_named_at_the_end(ray, error):
    from normscope.running import pickling

    killer, once = pickling.dumps(3), pickling.dumps(1)
    found = ray(fate=lambda task, attempt: error() if task == killer or (task == once and attempt == 1) else None)
    results = []
    with pytest.raises(UsageError, match="the worker died twice at the number 3"):
        results.extend(RayExecutor(2).run(Work(double, "the number {}".format), range(5)))
    assert sorted(results) == [0, 2, 4, 8]
    assert (found.tries[killer], found.tries[once]) == (2, 2)


def test_an_exception_of_the_work_is_not_tried_again_and_the_others_are_called_off(ray):
    found = ray()
    with pytest.raises(ValueError, match="-1 is negative"):
        run([4, 5, -1])
    assert max(found.tries.values()) == 1
    assert len(found.cancelled) == 2
    assert not found.initialised


def test_whoever_stops_listening_calls_off_the_tasks(ray):
    found = ray()
    running = RayExecutor(2).run(Work(double, str), range(9))
    next(running)
    running.close()
    assert len(found.cancelled) == 8
    assert not found.initialised


@pytest.mark.parametrize("address", ["nonsense", "host", "host:port", "ray://", "10.0.0.1:99999999"])
def test_an_address_that_is_none_is_refused(ray, address):
    ray()
    with pytest.raises(UsageError, match="HOST:PORT, ray://HOST:PORT or auto"):
        list(RayExecutor(2, address=address).run(Work(double, str), range(2)))
