"""An executor is named in words: what the words mean, and what is wrong with them in one line."""

import sys

import pytest

from kit import runner_studies
from normscope._errors import DataError, UsageError
from normscope.comparing.cells import Engine
from normscope.running import LocalExecutor, RayExecutor, SlurmExecutor, executor_of


class Own:
    remote = False

    def run(self, work, tasks, *, gpus=0):
        yield from map(work, tasks)


def test_no_words_and_local_are_processes_of_this_machine():
    for words in (None, "local"):
        executor = executor_of(words, 3)
        assert isinstance(executor, LocalExecutor)
        assert not executor.remote


def test_an_executor_of_the_users_own_is_taken_as_it_is():
    own = Own()
    assert executor_of(own, 1) is own


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("rya", "did you mean ray"),
        ("", "local, ray, slurm"),
        ("local:cores=3", "has no option 'cores': it has none"),
        (3, "with `run` and `remote`, not 3"),
        (object(), "an object of type object"),
    ],
)
def test_what_names_no_executor_is_said_in_one_line(given, says):
    with pytest.raises(UsageError) as caught:
        executor_of(given, 1)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("words", "package"), [("ray", "ray"), ("slurm:cluster=local", "submitit")])
def test_a_package_that_is_not_installed_is_named_with_its_extra(words, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=rf"pip install 'normscope\[{words.partition(':')[0]}\]'"):
        executor_of(words, 1)


@pytest.mark.parametrize("words", [None, "local", "ray", "slurm:cluster=local"])
def test_a_number_of_workers_below_1_is_refused_everywhere(words, monkeypatch):
    for package in ("ray", "submitit"):
        if package not in sys.modules:
            monkeypatch.setitem(sys.modules, package, sys)  # only named here, never used
    with pytest.raises(UsageError, match="--workers must be at least 1, got 0"):
        executor_of(words, 0)


@pytest.mark.extras
@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("slurm:cluster=local,partiton=long", "no option 'partiton'"),
        (
            "slurm:cluster=local,timeout_min=an hour",
            "timeout_min of the executor slurm is a whole number, not 'an hour'",
        ),
        ("slurm:cluster=local,mem_gb=much", "mem_gb of the executor slurm is a number, not 'much'"),
        ("slurm:cluster=local,qos", "KEY=VALUE"),
        ("slurm:cluster=cloud", "is slurm or local, not 'cloud'"),
        ("slurm:cluster=local,timeout_min=0", "at least 1"),
        ("ray:adress=auto", "no option 'adress': its options are address"),
    ],
)
def test_a_wrong_option_is_named(words, says):
    pytest.importorskip("submitit")
    pytest.importorskip("ray")
    with pytest.raises(UsageError) as caught:
        executor_of(words, 1)
    assert says in str(caught.value)


@pytest.mark.extras
def test_options_are_the_arguments_of_the_executor():
    pytest.importorskip("submitit")
    pytest.importorskip("ray")
    assert isinstance(executor_of("slurm:cluster=local,mem_gb=1.5,timeout_min=3", None), SlurmExecutor)
    assert isinstance(executor_of("ray:address=ray://10.0.0.1:10001", None), RayExecutor)
    assert executor_of("ray").remote


def test_a_device_that_is_not_here_is_refused_only_where_the_work_is_done_here(monkeypatch):
    with pytest.raises(UsageError, match="no-such-device"):
        executor_of("local", 1, "no-such-device")
    monkeypatch.setitem(sys.modules, "ray", sys)
    assert executor_of("ray", None, "no-such-device").remote


class Counting:
    """An executor of the user's own on other machines: it notes what it is asked for."""

    remote = True

    def __init__(self):
        self.gpus = []

    def run(self, work, tasks, *, gpus=0):
        self.gpus.append(gpus)
        yield from ()


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0), ("cuda", 1)])
def test_a_cell_of_a_study_on_a_gpu_asks_for_one_though_this_machine_has_none(device, gpus, tmp_path):
    executor = Counting()
    with pytest.raises(DataError, match="no seed is complete"):  # the executor runs nothing
        runner_studies.Null().run(out=tmp_path, seeds=1, device=device, executor=executor)
    assert executor.gpus == [gpus]


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_cell_of_a_comparison_on_an_accelerator_asks_for_one(on_cpu):
    engine = Engine(Counting(), None, 3).on(on_cpu)
    assert (engine.gpus, engine.workers) == (int(not on_cpu), 3)
    here = Engine(LocalExecutor(3), None, 3).on(on_cpu)
    assert here.workers == (3 if on_cpu else 1)  # cells of one machine share its accelerator one after the other
