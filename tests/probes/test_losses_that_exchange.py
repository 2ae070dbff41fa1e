"""A loss that exchanges values with other processes by itself is refused by name, in every process, before it waits."""

import warnings

import pytest

from kit import ranks
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


def both(rank, folder):
    """Return for each kind of loss what the probes left, said and read."""
    found = {}
    for name, gather in gathers().items():
        bare, *_ = train(rank, gather, ())
        left, told, read = train(rank, gather, ("gradient_flow", "descent", "curvature"))
        found[name] = differences(bare, left), told, read
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exchanging")
    return ranks.run("probes.test_losses_that_exchange", "both", folder, PROCESSES)


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
