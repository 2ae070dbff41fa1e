"""``not_read`` is about what has read nothing: a later step at which a probe finds nothing changes no reason."""

import torch
from torch import nn

import normscope as ns


def test_a_probe_that_once_read_values_is_not_listed():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scope = ns.watch(model, optimizer, probes="batch-norm-gradient-terms", every=1)
    for step in range(3):
        model[1].train(step == 1)  # normalizes by its batch at this step alone
        optimizer.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimizer.step()
        assert set(scope.not_read) == ({"batch_norm_gradient_terms"} if step == 0 else set())
    scope.detach()
    assert scope.records()["step"].unique().to_list() == [1]
