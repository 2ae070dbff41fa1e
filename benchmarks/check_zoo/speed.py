"""How long a check of a ResNet-18 takes."""

import time

import torch
from torch import nn

import normscope as ns

from .kit import cross_entropy, images, sgd
from .residual_networks import ResNet


def resnet18_seconds() -> dict[str, float]:
    """Return what a check of ResNet-18 on 10 batches of 64 images of 32x32 takes with one thread.

    The network is torchvision's: 64 to 512 channels, a stem that takes a stride of two and pools. Seconds of the
    processor are given beside those of the clock, as they say the same on a machine with other work; so are seconds of
    the ten training steps of an epoch.
    """
    torch.manual_seed(0)
    net = ResNet((2, 2, 2, 2), width=64, classes=10)
    net.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
    net.relu = nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
    net.train()
    loader, held = images(10, 64, px=32, seed=1, classes=10), images(10, 64, px=32, seed=2, classes=10)
    optimizer = sgd(net, 0.01)
    started = time.process_time()
    for batch in loader:
        optimizer.zero_grad()
        cross_entropy(net, batch).backward()
        optimizer.step()
    trained = time.process_time() - started
    clock, started = time.perf_counter(), time.process_time()
    ns.check(ns.Case(net, cross_entropy, loader, optimizer, held))
    return {"cpu": time.process_time() - started, "wall": time.perf_counter() - clock, "epoch": trained}
