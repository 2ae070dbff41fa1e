"""Norms that exchange statistics between processes: probes run the same passes in each, or stop in all of them."""

import os
import time
import warnings

import pytest

from kit import ranks
from kit.traces import differences, fingerprint
from kit.training_loops import seed_all

CODES = ["curvature", "landscape", "descent", "gradient_flow", "covariate_shift"]


def net(statistics):
    import torch
    from torch import nn

    from normscope import layers

    torch.manual_seed(2)
    options = {"statistics": "sync"} if statistics == "sync" else {}
    return nn.Sequential(
        nn.Linear(6, 9),
        layers.BatchNorm1d(9, **options),
        nn.Tanh(),
        nn.Linear(9, 9),
        layers.BatchNorm1d(9, **options),
        nn.Tanh(),
        nn.Linear(9, 3),
    )


def loss_fn(model, batch):
    from torch.nn import functional as F

    return F.cross_entropy(model(batch[0]), batch[1])


def batches(seed, steps, size=10):
    import torch

    stream = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield torch.randn(size, 6, generator=stream), torch.randint(3, (size,), generator=stream)


def train(rank, codes, statistics="sync", steps=3, loss=loss_fn, every=2):
    import torch
    from torch.nn.parallel import DistributedDataParallel

    from normscope.probes import Recorder

    model = net(statistics)
    replica = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(replica.parameters(), 0.05, momentum=0.9)
    seed_all()
    scope = Recorder(replica, loss, optimizer, codes, every=every)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in batches(rank, steps):
            with scope.step(batch):
                optimizer.zero_grad()
                loss_fn(replica, batch).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
    found = [[r.probe, r.step, r.site, r.name, r.value] for r in scope.drain()]
    told = [str(warning.message) for warning in caught if "probe" in str(warning.message)]
    return fingerprint(model=model, optimizer=optimizer), found, told


def compare(rank, folder, kinds):
    found = {}
    for kind in kinds:
        (bare, _, _), (seen, records, told) = train(rank, (), kind), train(rank, CODES, kind)
        found[kind] = differences(bare, seen), records, told
    return found


@pytest.mark.parametrize(
    ("count", "kinds"), [(2, ["sync", "batch"]), pytest.param(4, ["sync"], marks=pytest.mark.long)]
)
def test_training_is_bit_identical_and_nobody_waits(count, kinds, tmp_path):
    by_rank = ranks.run(__name__, "compare", tmp_path, count, kinds)
    for kind in kinds:
        _judge(kind, count, [one[kind] for one in by_rank])


def _judge(statistics, count, found):
    assert [same for same, *_ in found] == [[]] * count
    assert [told for *_, told in found] == [[]] * count
    values = [{tuple(key): value for *key, value in records} for _, records, _ in found]
    assert {probe for probe, *_ in values[0]} == set(CODES)
    # One loss of all processes, or each its own.
    curvature = [{key: value for key, value in one.items() if key[0] == "curvature"} for one in values]
    assert all(one == curvature[0] for one in curvature) is (statistics == "sync")
    norms = [{key: value for key, value in one.items() if key[3] == "norm"} for one in values]
    assert norms[0]
    assert all(one == norms[0] for one in norms)  # averaged, before clipping
    clipped = {
        key[2]: value / norms[0][(*key[:3], "norm")] for key, value in values[0].items() if key[3] == "norm_at_update"
    }
    assert 0 < clipped["0"] < 0.5
    assert clipped == pytest.approx(dict.fromkeys(("0", "3", "6"), clipped["0"]), rel=1e-5)


def measure_exactly(rank, folder):
    """Curvature along the gradient of the mean loss, beside a central difference of the whole training's gradient."""
    import torch

    from normscope import probes
    from normscope.probes import Recorder

    model, (batch,) = net("sync").double(), batches(rank, 1)
    batch = batch[0].double(), batch[1]
    scope = Recorder(model, loss_fn, None, [probes.Curvature(["gradient"], modes=["train"])], every=1)
    parameters = list(model.parameters())

    def gradient():
        parts = torch.autograd.grad(loss_fn(model, batch), parameters)
        flat = torch.cat([part.reshape(-1) for part in parts])
        torch.distributed.all_reduce(flat)
        return flat / torch.distributed.get_world_size()

    with scope.step(batch):
        loss_fn(model, batch).backward()
    g = gradient()
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(
                torch.nn.utils.parameters_to_vector(parameters) + sign * 1e-5 * g / g.norm(), parameters
            )
        ends.append(gradient())
        with torch.no_grad():
            torch.nn.utils.vector_to_parameters(
                torch.nn.utils.parameters_to_vector(parameters) - sign * 1e-5 * g / g.norm(), parameters
            )
    product = (ends[0] - ends[1]) / 2e-5
    found = {r.name: r.value for r in scope.drain()}
    return found["gradient_curvature@train"], float(product @ g / g.norm())


def test_the_hessian_is_that_of_the_mean_loss(tmp_path):
    for found, expected in ranks.run(__name__, "measure_exactly", tmp_path, 2):
        assert found == pytest.approx(expected, rel=1e-5)


def count_from_zero():
    os.environ["CALLS"] = "0"


def count():
    """Count calls where no probe puts the number back."""
    os.environ["CALLS"] = str(int(os.environ["CALLS"]) + 1)
    return int(os.environ["CALLS"])


def fail_in_one(rank, folder, places):
    """Train once for each place at which a probe fails."""
    return [failing(rank, where) for where in places]


def failing(rank, where):
    """A probe fails in process 1: before its passes, between them, after them, or in the pass after the model ran."""
    from normscope import probes

    class Failing(probes.Descent):
        __doc__ = probes.Descent.__doc__

        def watch(self, step):
            if where == "hook" and rank == 1:
                raise ValueError("planted")
            super().watch(step)

        def read(self, step):
            if where == "before" and rank == 1:
                raise ValueError("planted")
            for index, record in enumerate(super().read(step)):
                if where == "between" and rank == 1 and index == 0:
                    step.replay.evaluate()  # one pass more than the others
                yield record
            if where == "after" and rank == 1:
                raise ValueError("planted")

    count_from_zero()

    def loss(model, batch):
        value = loss_fn(model, batch)
        if count() == 2 and where == "loss" and rank == 1:
            raise ValueError("planted")
        return value

    begun = time.monotonic()
    bare, _, _ = train(rank, ())
    seen, found, told = train(rank, [Failing(), probes.Curvature(["eigenvalues"])], loss=loss)
    return differences(bare, seen), sorted({probe for probe, *_ in found}), told, time.monotonic() - begun


PLACES = ["hook", "before", "between", "after", "loss"]


@pytest.mark.long
def test_a_probe_that_fails_in_one_process_fails_in_all_and_training_goes_on(tmp_path):
    by_rank = ranks.run(__name__, "fail_in_one", tmp_path, 2, PLACES)
    for where, *found in zip(PLACES, *by_rank, strict=True):
        for rank, (same, left, told, seconds) in enumerate(found):
            assert same == [], where
            assert "descent" in told[0], where
            assert "curvature" in left, where
            assert seconds < 60, where
            if where != "between":
                assert ("planted" in told[0]) is (rank == 1), where
            assert rank == 1 or "process" in told[0], where


def fail_in_the_model(rank, folder):
    """In process 1 the model itself fails in a probe's pass, before its norm has sent anything."""
    from datetime import timedelta

    from normscope import probes
    from normscope.modules import processes

    processes.PATIENCE = timedelta(seconds=3)
    count_from_zero()

    def loss(model, batch):
        if count() == 2 and rank == 1:
            raise ValueError("planted")
        return loss_fn(model, batch)

    train(rank, [probes.Descent()], loss=loss)
    return "went on"


@pytest.mark.long
def test_a_failure_within_a_pass_ends_the_training_within_bounds(tmp_path):
    begun = time.monotonic()
    found = ranks.run(__name__, "fail_in_the_model", tmp_path, 2, fails=True)
    assert time.monotonic() - begun < 90
    assert "BrokenPassError" in found[1]
    assert "in the middle of a pass" in found[1]
    assert found[0] != "went on"


def test_which_norms_exchange_values(monkeypatch):
    from torch import nn

    from normscope import layers
    from normscope.modules import processes

    group = object()
    grouped = nn.SyncBatchNorm(2)
    grouped.process_group = group
    modules = [
        (nn.BatchNorm1d(2), True),
        (nn.SyncBatchNorm(2), True),
        (grouped, True),
        (layers.BatchNorm1d(2, statistics="sync"), False),
    ]
    assert processes.exchanging(modules) == []  # a process alone
    monkeypatch.setattr(processes, "rank_of_many", lambda: 0)
    assert processes.exchanging(modules) == [None, group]
    assert processes.exchanging([*modules[:1], *modules[3:]]) == []
