"""How long a check of a ResNet-18 takes."""

import time

import torch
from torch import nn

import normscope as ns

from .kit import cross_entropy, images, sgd
from .residual_networks import ResNet


def resnet18_seconds() -> dict[str, float]:
    """Return seconds of a check of ResNet-18 (64 to 512 channels) on 10 batches of 64 images of 32x32, by threads."""
    found = {}
    threads = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        torch.manual_seed(0)
        net: nn.Module = ResNet((2, 2, 2, 2), width=64, classes=10).train()
        loader, held = images(10, 64, px=32, seed=1, classes=10), images(10, 64, px=32, seed=2, classes=10)
        optimizer = sgd(net, 0.01)
        for batch in loader[:3]:
            optimizer.zero_grad()
            cross_entropy(net, batch).backward()
            optimizer.step()
        started = time.perf_counter()
        ns.check(ns.Case(net, cross_entropy, loader, optimizer, held))
        found[str(count)] = time.perf_counter() - started
    torch.set_num_threads(threads)
    return found
