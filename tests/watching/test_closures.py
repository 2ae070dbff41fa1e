"""Optimizers that evaluate their closure several times: the step has one batch, that of the first evaluation."""

import pytest
import torch
from torch import nn

import normscope as ns


@pytest.mark.parametrize("evaluations", [1, 4])
def test_a_closure_that_runs_several_times_is_replayed_once(evaluations):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=evaluations, max_eval=evaluations)
    inputs, replayed, shown = torch.randn(16, 4), [], []

    def loss_fn(model, batch):
        replayed.append(batch)
        return model(batch).square().mean()

    scope = ns.watch(model, optimizer, loss_fn, ["statistics_gap"], every=1)

    def closure():
        optimizer.zero_grad()
        batch = inputs + len(shown)  # another batch at each evaluation
        shown.append(batch)
        loss = model(batch).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    scope.close()
    assert len(shown) == evaluations
    assert replayed
    assert all(torch.equal(batch, shown[0]) for batch in replayed)
