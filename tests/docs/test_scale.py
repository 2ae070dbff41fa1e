"""Every command of the guide to more than one machine runs: on a cluster, a bucket and jobs on loopback."""

import os
import shlex
from pathlib import Path

import pytest
from polars.testing import assert_frame_equal

from kit.executed import paths, records, write_factory, write_own
from kit.guides import ROOT, blocks

PAGE = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
COMMANDS = [line for block in blocks(PAGE, "sh") for line in block.splitlines() if "normscope" in line]
pytestmark = [pytest.mark.extras, pytest.mark.slow]

#: So that each run takes seconds.
FEW = {"study": ["--seeds", "2"], "compare": ["--seeds", "1", "--steps", "6", "--questions", "speed"], "report": []}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder, with a study and a training script."""
    write_own(tmp_path).rename(tmp_path / "my_claim.py")
    write_factory(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", paths())
    return tmp_path


def in_small(command: str, **changes: str) -> list[str]:
    """Return the words of a command of the page, some of them changed, for a run that takes seconds."""
    for word, other in changes.items():
        command = command.replace(word, other)
    words = shlex.split(command)[1:]
    return [*words, *FEW[words[0]]]


def of(*wanted: str) -> list[str]:
    """Return the commands of the page that hold all of these."""
    found = [command for command in COMMANDS if all(each in command for each in wanted)]
    assert found, f"the page has no command with {wanted}"
    return found


def test_each_command_of_the_page_is_run_here() -> None:
    run_here = [
        of("--workers 2"),
        of("slurm:partition=cpu"),
        of("--shard"),
        of("ray:address=127"),
        of("s3://bucket/runs"),
    ]
    submitted = of("ray job submit")  # its inner command is run
    assert sorted(sum(run_here, submitted)) == sorted(COMMANDS)


def test_a_laptop_slurm_and_shares_give_the_same_records(folder: Path, run) -> None:
    pytest.importorskip("submitit")
    (laptop,), (slurm,), shares = of("--workers 2"), of("slurm:partition=cpu"), of("--shard")
    run(*in_small(laptop))
    run(*in_small(slurm, **{"partition=cpu": "cluster=local"}))
    for k, command in enumerate(shares):
        assert (f"shard {k + 1}/3 has run its" in run(*in_small(command)).stdout) == (k < 2)
    wanted = records(folder / "runs" / "laptop", "own-study")
    assert wanted.height
    for out in ("slurm", "shares"):
        assert_frame_equal(records(folder / "runs" / out, "own-study"), wanted)


def test_ray_and_a_bucket_give_the_same_records(folder: Path, endpoint: str, run, monkeypatch) -> None:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    (to_bucket, report), (on_ray,), (submitted,) = of("s3://bucket/runs"), of("ray:address=127"), of("ray job submit")
    run(*in_small(to_bucket))
    run(*in_small(report))
    wanted = records("s3://bucket/runs")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        run(*in_small(on_ray, **{"127.0.0.1:6379": cluster.address}))
        run(*in_small(submitted.partition(" -- ")[2], **{"address=auto": f"address={cluster.address}"}))
    finally:
        cluster.shutdown()
    assert wanted.height
    assert_frame_equal(records(folder / "runs" / "ray"), wanted)
    assert_frame_equal(records("s3://bucket/ray"), wanted)
    assert not [name for name in os.listdir(folder) if name.startswith("s3")]
