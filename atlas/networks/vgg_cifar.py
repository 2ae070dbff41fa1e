"""VGG-A at a quarter of its width, with batch norm, on CIFAR-10: eight convolutions, He's initial weights."""

import torch
from torch import nn

import normscope as ns
from images import loaders, loss_fn

_BLOCKS = ((16,), (32,), (64, 64), (128, 128), (128, 128))


def make_network() -> nn.Module:
    """Return the network; the initial weights are those of the implementation that most people use."""
    layers: list[nn.Module] = []
    inside = 3
    for block in _BLOCKS:
        for outside in block:
            layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU()]
            inside = outside
        layers.append(nn.MaxPool2d(2))
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(inside, 128), nn.ReLU(), nn.Linear(128, 10))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model


def make_case() -> ns.Case:
    """Return the training set-up: SGD with momentum and weight decay."""
    train, test = loaders("cifar10", train=14_000, test=2_000, batch=64)
    model = make_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return ns.Case(model, loss_fn, train, optimizer, test)
