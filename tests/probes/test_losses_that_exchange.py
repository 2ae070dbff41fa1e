"""A loss that exchanges values with other processes by itself is refused by name, in every process, before it waits."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from kit.traces import differences, fingerprint
from kit.training_loops import seed_all

pytestmark = pytest.mark.long
PROCESSES = 2


def contrastive(gather):
    """Return a loss of the similarities to the outputs of all processes."""
    import torch
    from torch.nn import functional as F

    def loss_fn(model, batch):
        own = F.normalize(model(batch), dim=1)
        others = gather(own)
        return F.cross_entropy(own @ torch.cat(others).T, torch.arange(len(own)))

    return loss_fn


def train(rank, gather, codes):
    import torch
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    from normscope.probes import Recorder

    seed_all()
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    replica = DistributedDataParallel(model)
    optimizer, loss_fn = torch.optim.SGD(replica.parameters(), 0.05, momentum=0.9), contrastive(gather)
    scope = Recorder(replica, loss_fn, optimizer, codes, every=1)
    stream = torch.Generator().manual_seed(rank)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            batch = torch.randn(8, 4, generator=stream)
            with scope.step(batch):
                optimizer.zero_grad()
                loss_fn(replica, batch).backward()
                optimizer.step()
    told = [str(each.message) for each in caught if "failed at" in str(each.message)]
    return fingerprint(model=model, optimizer=optimizer), told, sorted({record.probe for record in scope.drain()})


def gathers():
    import torch
    from torch import distributed

    def plain(own):
        others = [torch.empty_like(own) for _ in range(PROCESSES)]
        distributed.all_gather(others, own.detach())
        return others

    def summed(own):
        together = own.detach().clone()
        distributed.all_reduce(together)
        return [own, together - own.detach()]

    return {"all_gather": plain, "all_reduce": summed, "nothing": lambda own: [own, -own]}


def main(rank, folder):
    import torch

    meet = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=PROCESSES)
    found = {}
    for name, gather in gathers().items():
        bare, *_ = train(rank, gather, ())
        left, told, read = train(rank, gather, ("gradient_flow", "descent", "curvature"))
        found[name] = differences(bare, left), told, read
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exchanging")
    call = "t.main(int(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    script = f"import sys, pathlib; from probes import test_losses_that_exchange as t; {call}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(rank), str(folder)],
            cwd=Path(__file__).parent.parent,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(PROCESSES)
    ]
    for one in started:
        _, errors = one.communicate()
        assert one.returncode == 0, errors
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", ["all_gather", "all_reduce"])
def test_an_exchange_is_refused_by_name_in_every_process(found, name):
    for each in found:
        left, told, read = each[name]
        assert left == []
        (message,) = told
        assert message.startswith("probes 'descent', 'curvature' failed at step 0 and are switched off")
        assert f"loss_fn exchanges values with other processes ({name.replace('_', '')})" in message
        assert read == ["gradient_flow"]


def test_a_loss_of_the_process_alone_is_evaluated_again(found):
    for each in found:
        left, told, read = each["nothing"]
        assert (left, told) == ([], [])
        assert read == ["curvature", "descent", "gradient_flow"]
