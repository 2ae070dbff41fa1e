"""The gap between training and evaluation, taken apart, against losses that the test computes by itself."""

import pytest
import torch
from torch import nn

from normscope.evidence import Case
from normscope.evidence.gap import measure_gap

EPS = 1e-5


def stale(momentum):
    """Return a case of one batch norm and two batches whose running statistics are far off; the loss is a square."""
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(40, 3, generator=generator) * 2 + 1 for _ in range(2)]
    norm = nn.BatchNorm1d(3, momentum=momentum, affine=False)
    norm.running_mean.copy_(torch.tensor([4.0, -2.0, 0.5]))
    norm.running_var.copy_(torch.tensor([9.0, 0.25, 1.5]))
    return Case(norm, lambda model, batch: (model(batch) + 0.3).square().mean(), batches, eval_loader=batches)


def loss_of_running(norm, batches):
    """Return the mean loss by the running statistics, in float64, from their values now."""
    mean, var = norm.running_mean.double(), norm.running_var.double()
    ys = [(batch.double() - mean) / (var + EPS).sqrt() for batch in batches]
    return float(torch.stack([(y + 0.3).square().mean() for y in ys]).mean())


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
def test_the_share_of_running_statistics_is_that_of_the_buffers_as_they_were(momentum):
    case = stale(momentum)
    running = loss_of_running(case.model, case.loader)
    buffers = [buffer.clone() for buffer in case.model.buffers()]
    gap = measure_gap(case, 2)
    assert gap.eval == pytest.approx(running, rel=1e-5)
    assert sum(share.loss for share in gap.shares) == pytest.approx(gap.eval - gap.train, rel=1e-6)
    assert gap.of("running statistics") == pytest.approx(running - loss_by_pooled(case.loader), rel=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(buffers, case.model.buffers(), strict=True))


def loss_by_pooled(batches):
    """Return the mean loss by the mean and the unbiased variance of all batches together, in float64."""
    whole = torch.cat(batches).double()
    ys = [(batch.double() - whole.mean(0)) / (whole.var(0) + EPS).sqrt() for batch in batches]
    return float(torch.stack([(y + 0.3).square().mean() for y in ys]).mean())
