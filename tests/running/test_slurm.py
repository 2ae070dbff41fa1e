"""Jobs of SLURM, against commands that stand in for SLURM's and run the jobs here."""

import functools
import re

import pytest

from kit import dying_tasks, slurm
from kit.executed import paths
from normscope._errors import UsageError
from normscope.running import Work, executor_of

pytest.importorskip("submitit")
pytestmark = pytest.mark.extras


@pytest.fixture
def submitted(tmp_path, monkeypatch):
    """The folder with the text of each ``sbatch`` call."""
    monkeypatch.setenv("PYTHONPATH", paths())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return slurm.install(tmp_path / "bin", monkeypatch)


@pytest.fixture
def marks(tmp_path):
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


def run(marks, tasks, words="slurm", workers=None, **options):
    work = Work(functools.partial(dying_tasks.do, str(marks)), dying_tasks.name, folder=marks.parent / "run")
    yield from executor_of(words, workers).run(work, tasks, **options)


def flags(text):
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", text, re.MULTILINE))


def test_an_array_asks_for_what_the_options_say_and_gives_all_results(marks, submitted):
    words = "slurm:partition=long,timeout_min=7,mem_gb=3,account=mine,qos=low"
    found = sorted(run(marks, [{"name": "a"}, {"name": "b"}], words, workers=1, gpus=1))
    assert found == ["a", "b"]
    (text,) = (path.read_text() for path in submitted.glob("*.sbatch"))
    asked = flags(text)
    expected = {"partition": "long", "time": "7", "mem": "3GB", "account": "mine", "qos": "low", "array": "0-1%1"}
    expected |= {"gpus-per-node": "1", "cpus-per-task": "1", "nodes": "1", "job-name": "normscope"}
    assert expected.items() <= asked.items()
    assert not (marks.parent / "run" / "slurm").exists()  # nothing is left where all went well


def test_work_for_the_cpu_asks_for_no_gpu_and_files_lie_where_the_option_says(marks, submitted, tmp_path):
    running = run(marks, [{"name": "a"}], f"slurm:folder={tmp_path / 'shared'}")
    assert list(running) == ["a"]
    texts = [path.read_text() for path in submitted.glob("*.sbatch")]
    assert texts  # a second where the machine was so slow that the job was taken for lost
    for text in texts:
        assert "gpus" not in text
        assert str(tmp_path / "shared") in text
    assert (tmp_path / "shared").is_dir()


@pytest.mark.slow
def test_a_lost_job_is_submitted_once_more_and_one_that_is_lost_twice_is_named_at_the_end(marks, submitted):
    found = []
    tasks = [{"name": "killer", "deaths": 9}, {"name": "behind"}, {"name": "once", "deaths": 1}, {"name": "well"}]
    with pytest.raises(UsageError, match=r"the worker died twice at the task killer \(see .*slurm") as caught:
        found.extend(run(marks, tasks, "slurm:tasks_per_job=2,timeout_min=3"))
    assert sorted(found) == ["behind", "once", "well"]
    assert "\n" not in str(caught.value)
    # Two jobs of two tasks; then, since both were lost, each task in a job of its own.
    asked = [flags(path.read_text()) for path in sorted(submitted.glob("*.sbatch"))]
    assert [each["array"] for each in asked] == ["0-1%2", "0-3%4"]
    assert [each["time"] for each in asked] == ["6", "6"]  # what two tasks may take
    assert list((marks.parent / "run" / "slurm").rglob("*submi*"))  # the files of the jobs stay to be looked at


def test_an_exception_of_the_work_is_raised_and_the_other_jobs_are_cancelled(marks, submitted):
    tasks = [{"name": "fails", "raises": True}, {"name": "waits", "after": "never"}]
    with pytest.raises(ZeroDivisionError, match="fails"):
        list(run(marks, tasks))
    (marks / "never.0").touch()  # the stand-in cancels nothing, so the job must end by itself
    assert (submitted / "cancelled").read_text() == "100\n"
    assert len(list(marks.glob("fails.*"))) == 1


def test_what_slurm_refuses_is_one_line(marks, submitted):
    with pytest.raises(UsageError, match=r"cannot submit jobs to SLURM: .*invalid partition") as caught:
        list(run(marks, [{"name": "a"}], "slurm:partition=refused"))
    assert "\n" not in str(caught.value)


def test_without_slurm_the_command_is_named_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="there is no sbatch here: run the command on a login node"):
        executor_of("slurm")


def test_a_folder_that_cannot_be_made_is_one_line(marks, submitted):
    (marks.parent / "run").write_text("a file")
    with pytest.raises(UsageError, match="name another by slurm:folder="):
        list(run(marks, [{"name": "a"}]))
