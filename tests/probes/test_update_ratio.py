"""The relative size of updates against a plain step."""

import math

import pytest
import torch
from torch import nn

from kit import varied_networks as nets
from kit.readings import by_name, read
from normscope.probes import UpdateRatio


@pytest.mark.parametrize("net", ["mlp", "cnn", "shared"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_update_ratio_is_the_change_over_the_weight(net, kind):
    model, (batch,) = nets.make(net), nets.batches(net, 1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = kind([p for p in model.parameters() if p.requires_grad], 0.01, weight_decay=0.1)
    found = read(model, nets.loss_fn, batch, UpdateRatio(), optimizer)
    assert set(by_name(found, "update_ratio")) == {
        "mlp": {"0", "3", "6", "9"}, "cnn": {"1", "5", "9"}, "shared": {"shared", "recurrent", "outlet"}
    }[net]  # fmt: skip
    for site in by_name(found, "update_ratio"):
        own = {n: p for n, p in model.named_parameters() if n.rpartition(".")[0] == site and p.ndim >= 2}
        change = math.sqrt(sum(float((p.detach() - before[n]).double().square().sum()) for n, p in own.items()))
        size = math.sqrt(sum(float(before[n].double().square().sum()) for n in own))
        assert found[site, "update_norm"] == pytest.approx(change, rel=1e-4)
        assert found[site, "update_ratio"] == pytest.approx(change / size, rel=1e-4)


def test_update_ratio_without_an_update_is_zero_and_of_zero_weights_nan():
    model, (batch,) = nets.make("mlp"), nets.batches("mlp", 1)
    assert set(by_name(read(model, nets.loss_fn, batch, UpdateRatio()), "update_ratio").values()) == {0.0}
    nn.init.zeros_(model[9].weight)
    found = read(model, nets.loss_fn, batch, UpdateRatio(), torch.optim.SGD(model.parameters(), 0.1))
    assert math.isnan(found["9", "update_ratio"])
    assert found["9", "update_norm"] > 0
