"""A comparison measures the growth of gradients that mean-field theory says, on a wide dense network and a VGG."""

import pytest
import torch
from torch import nn

import normscope as ns
from kit import set_ups


def made(model, *shape, batch):
    """Return a set-up on noise with He's weights, whose layers theory speaks of."""
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    batches = [(torch.randn(batch, *shape), torch.randint(10, (batch,))) for _ in range(2)]
    return ns.Case(model, set_ups.entropy, batches, torch.optim.SGD(model.parameters(), lr=1e-4))


def dense():
    layers = [nn.Linear(64, 512)]
    for _ in range(11):
        layers += [nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 512)]
    return made(nn.Sequential(*layers, nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 10)), 64, batch=512)


def vgg():
    layers = [nn.Conv2d(3, 96, 3, padding=1)]
    for _ in range(8):
        layers += [nn.BatchNorm2d(96), nn.ReLU(), nn.Conv2d(96, 96, 3, padding=1)]
    head = [nn.BatchNorm2d(96), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)]
    return made(nn.Sequential(*layers, *head), 3, 16, 16, batch=32)


@pytest.mark.long
@pytest.mark.parametrize("make", [dense, vgg])
def test_measured_growth_meets_theory_with_norms_and_without(make, tmp_path):
    """Seen: within 0.9 per cent of theory, and within the interval; the widths leave a per cent."""
    found = ns.compare(make, seeds=5, steps=2, questions=["gradients"], workers=1, out=tmp_path)
    (table,) = found.tables(found.answers_in_order[0])
    rows = {words.partition(" (")[0]: float(ratio) for words, *_, ratio in table.rows}
    assert rows.keys() == {"with its norms", "without norms"}
    assert all(0.97 < ratio < 1.03 for ratio in rows.values()), rows
