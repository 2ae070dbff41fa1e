"""A dense network with batch norm on digits: five hidden layers of 100 units, torch's initial weights."""

import torch
from torch import nn

import normscope as ns
from images import he_weights, loaders, loss_fn


def make_network(depth: int = 5, width: int = 100) -> nn.Module:
    """Return the network.

    Args:
        depth: Hidden layers.
        width: Units of a hidden layer.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for index in range(depth):
        layers += [nn.Linear(width if index else 64, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def make_case() -> ns.Case:
    """Return the training set-up: SGD with momentum."""
    return _case(make_network())


def make_case_with_he_weights() -> ns.Case:
    """Return the same set-up from He's initial weights."""
    return _case(he_weights(make_network()))


def make_case_with_one_hidden_layer() -> ns.Case:
    """Return the same set-up of a network with one hidden layer."""
    return _case(make_network(depth=1))


def _case(model: nn.Module) -> ns.Case:
    train, test = loaders("digits", train=1300, test=400, batch=64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return ns.Case(model, loss_fn, train, optimizer, test)
