"""A convolutional network with batch norm on Fashion-MNIST: four convolutions, torch's initial weights."""

import torch
from torch import nn

import normscope as ns
from images import loaders, loss_fn


def make_network() -> nn.Module:
    """Return the network."""
    layers: list[nn.Module] = []
    for index, (inside, outside) in enumerate([(1, 16), (16, 16), (16, 32), (32, 32)]):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU()]
        if index % 2:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 7 * 7, 10))


def make_case() -> ns.Case:
    """Return the training set-up: SGD with momentum."""
    train, test = loaders("fashion-mnist", train=16_000, test=2_000, batch=64)
    model = make_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return ns.Case(model, loss_fn, train, optimizer, test)
