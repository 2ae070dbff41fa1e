"""What a worker verifies before it works, and what comes back from it."""

import functools
import os
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

from kit import runner_studies
from kit.executed import paths
from normscope._errors import DataError, UsageError
from normscope.running import Work, pickling
from normscope.running.work import Sealed, do_sealed, result_of
from normscope.studies.cells import Source, run_group
from normscope.studies.lab.data import load


def half(number):
    return number / 2


def quarrel(number):
    class QuarrelError(Exception):  # a local class, which no pickle takes
        pass

    raise QuarrelError(f"about {number}")


def sealed(do=half, **changed):
    return Sealed.of(Work(do, str, **changed))


def test_a_task_gives_its_result_through_bytes_as_it_does_here():
    assert Work(half, str)(3) == result_of(do_sealed(sealed(), pickling.dumps(3))) == 1.5


def test_an_exception_comes_back_as_it_was_and_as_text_where_no_pickle_takes_it():
    with pytest.raises(TypeError, match="unsupported operand"):
        result_of(do_sealed(sealed(), pickling.dumps("three")))
    with pytest.raises(UsageError, match="a worker raised QuarrelError: about 3"):
        result_of(do_sealed(sealed(quarrel), pickling.dumps(3)))


@pytest.mark.parametrize("package", ["normscope", "torch"])
def test_a_worker_with_another_version_is_refused_by_name(package):
    work = Work(half, str)
    other = Work(half, str, versions={**work.versions, package: "0.0.1"})
    for run in (functools.partial(other, 3), lambda: result_of(do_sealed(Sealed.of(other), pickling.dumps(3)))):
        with pytest.raises(UsageError, match=rf"a worker on \S+ has {package} .*, the run 0\.0\.1: .* not replicates"):
            run()


def test_versions_are_compared_before_the_work_is_read():
    broken = Sealed((("torch", "0.0.1"),), "key", b"no pickle")
    with pytest.raises(UsageError, match=r"the run 0\.0\.1"):
        result_of(do_sealed(broken, b"no pickle either"))


@pytest.mark.long
def test_a_process_with_another_torch_before_it_on_its_path_is_refused(tmp_path):
    """The version is that of the first distribution on the path, in a process as a worker is."""
    planted = tmp_path / "torch-0.0.1.dist-info"
    planted.mkdir()
    (planted / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.0.1\n")
    (tmp_path / "task.bin").write_bytes(pickling.dumps((sealed(), pickling.dumps(3))))
    script = textwrap.dedent("""
        import pathlib, pickle, sys
        from normscope.running.work import do_sealed
        print(do_sealed(*pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())).error)
    """)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), paths()])}
    words = [sys.executable, "-c", script, tmp_path / "task.bin"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert "has torch 0.0.1, the run" in done.stdout


def test_work_that_no_pickle_takes_is_said_in_one_line():
    with pytest.raises(UsageError, match="cannot be sent to other machines") as caught:
        sealed(functools.partial(half, threading.Lock()))
    assert "\n" not in str(caught.value)


def test_a_module_that_a_worker_lacks_is_named(monkeypatch):
    import kit.executed

    found = sealed(kit.executed.records)
    monkeypatch.setitem(sys.modules, "kit.executed", None)
    with pytest.raises(UsageError, match=r"cannot import kit\.executed .* share its folder"):
        found.opened()


@pytest.fixture
def images(tmp_path):
    """Write data into a file, and return the function that writes it."""
    file = tmp_path / "images.npz"

    def write(seed):
        draw = np.random.default_rng(seed)
        x, y = draw.normal(size=(300, 64)).astype(np.float32), np.arange(300) % 10
        np.savez(file, x_train=x, y_train=y, x_test=x, y_test=y)
        return str(file)

    load.cache_clear()
    yield write
    load.cache_clear()


def test_data_that_changed_since_the_run_began_are_refused(images):
    study, name = runner_studies.Null(), images(0)
    data = load(name)
    cells = study.cells("quick", [0], data)[:1]
    images(1)
    load.cache_clear()  # as in another process
    with pytest.raises(DataError, match=r"images\.npz: a worker on .* reads other data .* not replicates"):
        run_group(study, Source(name, data.fingerprint()), "cpu", cells)
    assert run_group(study, Source(name, data.fingerprint(), data), "cpu", cells)  # the data came with the work


def test_a_worker_that_read_the_file_for_an_earlier_run_reads_it_again(images):
    first = load(images(0)).fingerprint()
    load.cache_clear()
    name = images(1)
    second = load(name).fingerprint()
    images(0)
    assert first != second
    assert Source(name, first).load().fingerprint() == first


def test_data_travel_with_the_work_once_and_are_read_once_in_a_process():
    fetched = []

    def fetch():
        fetched.append(1)
        return whole.content

    whole = sealed()
    stored = Sealed(whole.versions, whole.key + "of this test", fetch)
    assert [result_of(do_sealed(stored, pickling.dumps(number))) for number in (2, 4, 6)] == [1, 2, 3]
    assert len(fetched) == 1
