"""What the healthy set-ups share: how they are collected, trained and built.

Each entry of ``HEALTHY`` is a function that makes a ``Case``: a network trained for some steps as its kind is trained,
in the modes of training, with the data and the step that go with it.
"""

import torch
from torch import nn

from normscope.evidence import Case, examples

HEALTHY = {}


def healthy(make):
    HEALTHY[make.__name__] = make
    return make


def images(*, size=32, batches=12, seed=0, channels=3, side=8):
    return examples.data((channels, side, side), size=size, batches=batches, seed=seed)


def fit(model, loader, loss_fn=examples.loss_fn, *, optimizer=None, step=None, epochs=5, **options):
    """Train as the case says, and hand it over."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    for epoch in range(epochs):
        for group in optimizer.param_groups if epoch == epochs - 2 else ():
            group["lr"] *= 0.1  # as every schedule ends: weights that still run are ahead of their running statistics
        for batch in loader:
            if step is not None:
                step(model, batch)
                continue
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
    optimizer.zero_grad()
    return Case(model, loss_fn, loader, optimizer, step=step, **options)


def conv_norm(inputs, outputs, kernel=3, norm=nn.BatchNorm2d, act=nn.ReLU, **options):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options), norm(outputs), act()
    )


class Head(nn.Sequential):
    def __init__(self, width, classes=4):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
