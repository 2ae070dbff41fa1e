"""Data-parallel training: no trace in it, every process records its own batch, and one folder holds all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kit import varied_networks as nets
from kit.traces import differences, fingerprint
from kit.training_loops import seed_all
from normscope.records import Store

CODES = ("activation_distribution", "covariate_shift", "gradient_flow", "landscape")


def train(rank, folder, codes):
    """Train one of two replicas; run in a process of its own."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from normscope.probes import Recorder

    model = nets.make("residual")
    replica = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD(replica.parameters(), 0.05, momentum=0.9)
    seed_all()
    scope = Recorder(replica, nets.loss_fn, optimizer, codes, every=2, record_to=folder / "run" if codes else None)
    with scope:
        for batch in nets.batches("residual", 4, seed=rank):
            with scope.step(batch):
                optimizer.zero_grad()
                nets.loss_fn(replica, batch).backward()
                optimizer.step()
    proven = list(scope._loop.proven.values())  # white box: whether the own gradient was used shows nowhere else
    return {"left": fingerprint(model=model, optimizer=optimizer), "proven": proven, "cell": scope.cell}


def main(rank, folder):
    import torch

    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    bare, seen = train(rank, folder, ()), train(rank, folder, CODES)
    same = differences(bare["left"], seen["left"])
    (folder / f"{rank}.json").write_text(json.dumps((same, seen["proven"], seen["cell"])))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    script = (
        "import sys, pathlib, probes.test_recorder_replicas as t; t.main(int(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(folder)],
            cwd=Path(__file__).parent.parent,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for one in started:
        _, errors = one.communicate()
        assert one.returncode == 0, errors
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_replicas_train_as_without_a_scope(found):
    assert [same for same, *_ in found[1]] == [[], []]


def test_each_process_proves_its_own_gradient_before_it_is_averaged(found):
    assert [proven for _, proven, _ in found[1]] == [[True], [True]]


def test_one_folder_holds_a_cell_of_every_process(found):
    folder, _ = found
    frame = Store.open(folder / "run").frame()
    assert set(frame["cell"]) == {"scope.rank0", "scope.rank1"}
    counts = frame.group_by("cell", "probe").len()
    assert counts.height == 2 * len(CODES)
    assert all(not site.startswith("module.") for site in frame["site"])
    ours = frame.filter((frame["probe"] == "landscape") & (frame["name"] == "loss") & (frame["step"] == 0))
    assert ours.height == 2
    assert ours["value"].n_unique() == 2  # each of its own batch
    norms = frame.filter((frame["probe"] == "gradient_flow") & (frame["name"] == "norm") & (frame["step"] == 0))
    for _, rows in norms.group_by("site"):
        assert rows["value"].n_unique() == 1  # what the optimizer is handed is averaged over the processes
