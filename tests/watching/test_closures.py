"""Optimizers that evaluate their closure several times: the step has one batch, that of the first evaluation."""

import polars as pl
import pytest
import torch
from torch import nn

import normscope as ns


@pytest.mark.parametrize("evaluations", [1, 4])
def test_the_loss_of_a_closure_that_runs_several_times_is_that_of_its_first_evaluation(evaluations):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), 0.1, max_iter=evaluations, max_eval=evaluations)
    inputs, losses = torch.randn(16, 4), []

    def loss_fn(model, batch):
        return model(batch).square().mean()

    scope = ns.watch(model, optimizer, loss_fn, probes=["statistics_gap"], every=1)

    def closure():
        optimizer.zero_grad()
        loss = loss_fn(model, inputs * (1 + len(losses)))  # another batch at each evaluation
        loss.backward()
        losses.append(loss.item())
        return loss

    optimizer.step(closure)
    read = scope.records().filter(pl.col("name") == "train_loss")["value"].to_list()
    scope.detach()
    assert len(losses) == evaluations
    assert read == [pytest.approx(losses[0], rel=1e-6)]
