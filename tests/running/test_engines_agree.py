"""The records are the same, bit for bit, wherever the cells are computed."""

import os

import joblib
import pytest
from polars.testing import assert_frame_equal

from kit.executed import paths, run_everything, write_factory, write_own
from normscope.running import RayExecutor

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder: a study and a factory, each in a file."""
    folder = tmp_path_factory.mktemp("user")
    write_own(folder)
    write_factory(folder)
    return folder


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory):
    """What one process computes by itself."""
    return run_everything(folder, tmp_path_factory.mktemp("alone"), None, workers=1)


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", paths())


def require_equal(found, alone):
    for name, frame in found.items():
        assert len(frame) > 10
        assert_frame_equal(frame, alone[name], check_exact=True)


@pytest.mark.long
def test_processes_of_this_machine(folder, alone, tmp_path):
    require_equal(run_everything(folder, tmp_path, "local"), alone)


@pytest.mark.extras
def test_ray_on_this_machine(folder, alone, tmp_path):
    ray = pytest.importorskip("ray")
    with RayExecutor(2) as executor:
        require_equal(run_everything(folder, tmp_path, executor), alone)
    assert not ray.is_initialized()


@pytest.mark.extras
def test_jobs_of_submitit(folder, alone, tmp_path):
    pytest.importorskip("submitit")
    require_equal(run_everything(folder, tmp_path, "slurm:cluster=local", few=True), alone)
    assert not list(tmp_path.rglob("*.pkl"))


@pytest.mark.extras
def test_joblib_with_dask(folder, alone, tmp_path):
    distributed = pytest.importorskip("distributed")
    options = {"processes": True, "dashboard_address": None, "local_directory": str(tmp_path / "dask")}
    # Two threads in a process: a process does one cell at a time all the same.
    cluster = distributed.LocalCluster(n_workers=1, threads_per_worker=2, **options)
    with cluster, distributed.Client(cluster), joblib.parallel_config("dask"):
        require_equal(run_everything(folder, tmp_path, None), alone)
    assert os.environ["PYTHONPATH"] == paths()
