"""A convolutional network with batch norm on Fashion-MNIST: four convolutions, torch's initial weights."""

import torch
from torch import nn

import normscope as ns
from images import he_weights, loaders, loss_fn


def make_network(side: int = 28) -> nn.Module:
    """Return the network.

    Args:
        side: Pixels of a side of an image.
    """
    layers: list[nn.Module] = []
    for index, (inside, outside) in enumerate([(1, 16), (16, 16), (16, 32), (32, 32)]):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU()]
        if index % 2:
            layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * (side // 4) ** 2, 10))


def make_case() -> ns.Case:
    """Return the training set-up: SGD with momentum."""
    return _case(make_network(), "fashion-mnist")


def make_case_with_he_weights() -> ns.Case:
    """Return the same set-up from He's initial weights."""
    return _case(he_weights(make_network()), "fashion-mnist")


def make_case_on_digits() -> ns.Case:
    """Return the same set-up on scikit-learn's digits, 8 x 8 pixels."""
    return _case(make_network(side=8), "digits")


def _case(model: nn.Module, data: str) -> ns.Case:
    train, test = loaders(data, train=16_000, test=2_000, batch=64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return ns.Case(model, loss_fn, train, optimizer, test)
