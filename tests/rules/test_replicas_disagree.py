"""Replicas with planted statistics; and two processes, in which drift is found and repaired to the same bits."""

import copy
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from kit.findings import finding_of, is_quiet, repaired
from normscope.evidence import examples


def drifted(means, variances):
    """A norm of a channel and replicas of it, with these running statistics, the model's own first."""
    case = examples.alone(examples.batch_norm(2), [examples.two_values(0.0, 1.0, 32, 2)] * 3)
    models = [case.model, *(copy.deepcopy(case.model) for _ in means[1:])]
    for model, mean, variance in zip(models, means, variances, strict=True):
        model[0].running_mean[1], model[0].running_var[1] = mean, variance
    case.replicas = tuple(models[1:])
    return case


@pytest.mark.parametrize(
    ("means", "variances"),
    [([0.0, 3.0], [1.0, 1.0]), ([0.0, 0.5, -0.5, 2.0], [1.0, 9.0, 4.0, 0.25]), ([1.0, 1.0], [1.0, 16.0])],
)
def test_distance_and_pooled_statistics_are_those_of_the_law_of_total_variance(means, variances):
    case = drifted(means, variances)
    mean, variance = (torch.tensor(values, dtype=torch.float64) for values in (means, variances))
    pooled = variance.mean() + mean.var(correction=0)
    apart = max(mean.max() - mean.min(), variance.sqrt().max() - variance.sqrt().min()) / (pooled + 1e-5).sqrt()
    finding = finding_of(case, "NS114")
    assert finding.measured == pytest.approx(float(apart), rel=1e-6)
    assert finding.details["mean_variance_over_pooled"] == pytest.approx(float(variance.mean() / pooled), rel=1e-6)
    assert finding.message == (
        f"{len(means)} processes have different running statistics in 1 norm: they lie up to {float(apart):.2g} "
        "standard deviations apart"
    )
    assert repaired(case, "NS114").startswith(f"gave {len(means)} replicas the pooled statistics")
    for model in (case.model, *case.replicas):
        torch.testing.assert_close(model[0].running_mean[1].double(), mean.mean(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(model[0].running_var[1].double(), pooled, rtol=1e-6, atol=1e-6)


def test_only_the_norms_that_differ_are_named_and_equal_ones_are_left_in_peace():
    case = drifted([0.0, 0.0], [1.0, 1.0])
    assert is_quiet(case, "NS114")
    case.model.append(examples.batch_norm(2))
    case.replicas[0].append(examples.batch_norm(2, mean=0.5))
    assert finding_of(case, "NS114").places == ("1",)


def replica(rank, folder):
    import warnings

    import torch.distributed as dist

    from normscope import checking, evidence

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {}
    for name, broadcast in (("alone", False), ("broadcast", True)):
        plain = examples.seeded(examples.mlp)
        model = nn.parallel.DistributedDataParallel(plain, broadcast_buffers=broadcast)
        loader = examples.data((12,), seed=rank, mean=float(3 * rank))
        for batch in loader:
            examples.loss_fn(model, batch).backward()
        case = evidence.Case(model, examples.loss_fn, loader, torch.optim.SGD(model.parameters(), lr=0.1))
        before = {key: value.clone() for key, value in plain.state_dict().items()}
        findings = checking.check(case, ["NS114"], gap=False)
        same = all(torch.equal(before[key], value) for key, value in plain.state_dict().items())
        checking.fix(case, findings, unsafe=True)
        again = checking.check(case, ["NS114"], gap=False)
        found[name] = {
            "before": before,
            "found": [list(finding.places) for finding in findings],
            "same": same,
            "again": len(again),
            "after": {key: value.clone() for key, value in plain.state_dict().items()},
        }
    found["whole"] = watched(rank)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def watched(rank):
    """Train as is usual, with buffers broadcast, under a scope; then check. Returns what both found."""
    import normscope as ns
    from normscope import checking, evidence

    model = nn.parallel.DistributedDataParallel(examples.seeded(examples.mlp))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    loader = examples.data((12,), seed=rank)
    scope = ns.Scope(model, examples.loss_fn, optimizer, rules="all", every=6)
    for batch in loader * 3:
        with scope.step(batch):
            optimizer.zero_grad()
            examples.loss_fn(model, batch).backward()
            optimizer.step()
    seen = [(one.code, one.message) for one in scope.findings()]
    checked = [
        (one.code, one.message) for one in checking.check(evidence.Case(model, examples.loss_fn, loader, optimizer))
    ]
    return {
        "seen": seen,
        "checked": checked,
        "state": {key: value.clone() for key, value in model.state_dict().items()},
    }


@pytest.fixture(scope="module")
def found():
    if not torch.distributed.is_available() or sys.platform == "win32":
        pytest.skip("needs gloo")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(replica, (folder,), nprocs=2, start_method="spawn")
        yield [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.long
def test_buffers_that_are_not_broadcast_are_found_and_pooled_in_both(found):
    one, other = (process["alone"] for process in found)
    assert one["found"] == other["found"] == [["module.1", "module.4", "module.7"]]
    assert one["same"]
    assert other["same"]
    assert one["again"] == other["again"] == 0
    assert all(torch.equal(one["after"][key], other["after"][key]) for key in one["after"])
    # The law of total variance, written out here: what lies between the processes counts.
    means = torch.stack([process["before"]["1.running_mean"] for process in (one, other)]).double()
    variances = torch.stack([process["before"]["1.running_var"] for process in (one, other)]).double()
    pooled = variances.mean(0) + means.var(0, correction=0)
    torch.testing.assert_close(one["after"]["1.running_var"].double(), pooled, rtol=1e-5, atol=1e-6)
    assert float((pooled / variances.mean(0)).max()) > 1.5


@pytest.mark.long
def test_buffers_that_are_broadcast_are_left_in_peace(found):
    assert [process["broadcast"]["found"] for process in found] == [[], []]


@pytest.mark.long
def test_usual_training_in_several_processes_is_left_in_peace_by_a_scope_and_by_a_check(found):
    one, other = (process["whole"] for process in found)
    assert one["seen"] == other["seen"] == []
    assert one["checked"] == other["checked"] == []
    weights = [
        key for key in one["state"] if "running" not in key
    ]  # buffers are of the last forward pass until the next
    assert all(torch.equal(one["state"][key], other["state"][key]) for key in weights)
