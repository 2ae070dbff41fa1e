"""Batches that are announced from a hook of the model itself, as a trainer's callback does."""

import torch
from torch import nn

import normscope as ns


def test_batches_are_announced_by_a_hook_of_the_model():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scope = ns.Scope(model, lambda model, x: model(x).square().mean(), optimizer, probes="descent", every=1)
    hook = model.register_forward_pre_hook(
        lambda _, args: (scope.inside_step and scope.micro_batch(args[0], 0.5)) or None
    )
    for _ in range(2):
        scope.begin()
        optimizer.zero_grad()
        losses = []
        for _ in range(2):
            loss = model(torch.randn(5, 3)).square().mean() / 2
            loss.backward()
            losses.append(loss.item())
        optimizer.step()
        scope.end()
        read = scope.records().filter(
            (scope.records()["name"] == "loss") & (scope.records()["step"] == scope.index - 1)
        )
        torch.testing.assert_close(read["value"].item(), sum(losses))
    hook.remove()
