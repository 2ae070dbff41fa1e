"""A real Ray cluster on this machine: a head and nodes of one CPU each."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from kit.executed import COMPARISON, paths, records, write_factory, write_own
from normscope import cli, compare, studies
from normscope._errors import UsageError
from normscope.records.files import alive
from normscope.running import RayExecutor

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.extras, pytest.mark.slow]


@contextlib.contextmanager
def started():
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths())
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            yield found
        finally:
            found.shutdown()


@pytest.fixture(scope="module")
def cluster():
    with started() as found:
        yield found


@pytest.fixture
def cluster_of_its_own():
    """For a test that kills nodes: Ray tells each later driver of a node that died, when it has noticed."""
    with started() as found:
        yield found


@pytest.fixture
def address(cluster, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", paths())
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield cluster.address
    assert not ray.is_initialized()


#: Each cell says where it begins, and waits for the file ``go`` beside the study.
HELD = """
        import os, pathlib, time, ray
        folder = pathlib.Path({folder!r})
        with open(folder / "begun", "a") as file:
            file.write(f"{{cell.id}} {{ray.get_runtime_context().get_node_id()}} {{os.getpid()}}\\n")
        while not (folder / "go").exists():
            time.sleep(0.05)
"""


def test_only_the_cells_of_a_killed_node_run_again_and_the_records_are_the_same(cluster_of_its_own, tmp_path):
    cluster, address = cluster_of_its_own, cluster_of_its_own.address
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    study = studies.from_file(write_own(tmp_path / "user", HELD.format(folder=str(tmp_path)).strip()))
    found = []
    running = threading.Thread(
        target=lambda: found.append(study.run(out=tmp_path / "ray", seeds=3, executor=f"ray:address={address}"))
    )
    running.start()

    def begun():
        file = tmp_path / "begun"
        return [line.split() for line in file.read_text().splitlines()] if file.exists() else []

    try:
        limit = time.monotonic() + 240
        while len({node for _, node, _ in begun()}) < 3:
            assert running.is_alive()
            assert time.monotonic() < limit, "the nodes did not begin within four minutes"
            time.sleep(0.1)
        killed = nodes[0]
        lost = {cell: int(pid) for cell, node, pid in begun() if node == killed.node_id}
        cluster.remove_node(killed, allow_graceful=False)
        while any(map(alive, lost.values())):  # a worker ends soon after its node
            assert time.monotonic() < limit, "the worker outlives its node"
            time.sleep(0.1)
    finally:
        (tmp_path / "go").touch()
        running.join(240)
    cluster.remove_node(nodes[1])
    assert found, "the run did not end"
    count = Counter(cell for cell, *_ in begun())
    assert len(lost) == 1
    assert {cell for cell, times in count.items() if times > 1} == lost.keys()
    assert len(count) == 12
    alone = studies.from_file(write_own(tmp_path / "other", "pass")).run(out=tmp_path / "alone", seeds=3, workers=1)
    assert found == [alone]
    assert_frame_equal(records(tmp_path / "ray", study.CODE), records(tmp_path / "alone", study.CODE), check_exact=True)


def test_the_command_runs_a_study_and_a_comparison_on_the_cluster_of_the_environment(run, address, tmp_path):
    file, made = write_own(tmp_path), write_factory(tmp_path)
    run("study", "run", file, "--seeds", 2, "--executor", "ray", "--out", tmp_path / "ray")
    studies.from_file(file).run(out=tmp_path / "alone", seeds=2, workers=1)
    assert_frame_equal(records(tmp_path / "ray/own-study"), records(tmp_path / "alone/own-study"), check_exact=True)
    words = ["--seeds", 1, "--steps", 6, "--questions", "speed"]
    run("compare", made, *words, "--executor", f"ray:address={address}", "--out", tmp_path / "ray/compared")
    compare(made, out=tmp_path / "alone/compared", workers=1, **COMPARISON)
    assert_frame_equal(records(tmp_path / "ray/compared"), records(tmp_path / "alone/compared"), check_exact=True)


def test_what_a_users_study_raises_in_a_worker_is_one_line_with_its_file_and_line(refuse, address, tmp_path):
    file = write_own(tmp_path, "1 / 0")
    line = file.read_text().splitlines().index("        1 / 0") + 1
    said = refuse("study", "run", file, "--seeds", 1, "--executor", "ray", "--out", tmp_path / "runs")
    assert "running arm 'first' of own-study raised ZeroDivisionError: division by zero" in said
    assert said.endswith(f"(own_study.py:{line})")


def test_a_factory_that_workers_do_not_find_or_find_changed_is_named(address, tmp_path, monkeypatch):
    made = write_factory(tmp_path)
    file, text = Path(made.rpartition(":")[0]), Path(made.rpartition(":")[0]).read_text()
    options = COMPARISON | {"out": tmp_path / "runs", "executor": "ray"}

    class Gone(RayExecutor):
        def run(self, work, tasks, **more):
            file.unlink()
            return super().run(work, tasks, **more)

    class Changed(RayExecutor):
        def run(self, work, tasks, **more):
            file.write_text(text + "\n# another text\n")
            return super().run(work, tasks, **more)

    with pytest.raises(UsageError, match=r"has no file .*train\.py: its folder must be shared .*--working-dir"):
        compare(made, **options | {"executor": Gone()})
    file.write_text(text)
    with pytest.raises(UsageError, match=r"reads another .*train\.py than the run began with"):
        compare(made, **options | {"executor": Changed()})


def test_a_worker_with_another_torch_is_refused_and_an_initialised_ray_is_left(refuse, cluster, tmp_path, monkeypatch):
    planted = tmp_path / "site" / "torch-0.0.1.dist-info"
    planted.mkdir(parents=True)
    (planted / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 0.0.1\n")
    searched = os.pathsep.join([str(planted.parent), paths()])
    ray.init(cluster.address, runtime_env={"env_vars": {"PYTHONPATH": searched}}, log_to_driver=False)
    try:
        words = ["--seeds", 1, "--executor", "ray", "--out", tmp_path / "runs"]
        said = refuse("study", "run", write_own(tmp_path), *words)
        assert "has torch 0.0.1, the run " in said
        assert "records of two versions are not replicates" in said
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_a_cluster_that_is_not_there_is_one_line(refuse, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        words = ["study", "run", write_own(tmp_path), "--seeds", 1, "--out", tmp_path / "runs", "--executor"]
        assert f"no Ray cluster answers at 127.0.0.1:{port} within" in refuse(*words, f"ray:address=127.0.0.1:{port}")
    assert f"no Ray cluster at 127.0.0.1:{port}" in refuse(*words, f"ray:address=127.0.0.1:{port}")
    assert not (tmp_path / "runs" / "own-study").exists()


def test_an_interrupt_ends_the_command_and_the_ray_that_it_started(tmp_path):
    file = write_own(tmp_path / "user", f'open({str(tmp_path / "begun")!r}, "a").close(); import time; time.sleep(600)')
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = paths()
    words = ["study", "run", str(file), "--seeds", "1", "--executor", "ray", "--workers", "1", "--out", "runs"]
    process = subprocess.Popen(
        [sys.executable, "-m", cli.__package__.partition(".")[0], *words],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # The suite may run in the background of a shell, whose children ignore the signal.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        limit = time.monotonic() + 240
        while not (tmp_path / "begun").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < limit, "no cell began within four minutes"
            time.sleep(0.1)
        below = descendants()[process.pid]
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said = process.communicate(timeout=120)
        assert process.returncode == 130
        assert said[1].splitlines() == ["normscope: interrupted; run the same command again to go on where it stopped"]
        limit = time.monotonic() + 60
        while left := [pid for pid in below if alive(pid)]:
            assert time.monotonic() < limit, left
            time.sleep(0.2)
    finally:
        if process.poll() is None:
            process.kill()


def descendants():
    """The processes below each process, children of children included."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = defaultdict(list)
    for pid in parents:
        above = pid
        while above := parents.get(above):
            found[above].append(pid)
    return found
