"""A small training with a scope, which somebody watches: python watched_training.py FOLDER STEPS PAUSE."""

import sys
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import normscope as ns


def loss_fn(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """The loss of a batch."""
    return cross_entropy(model(batch[0]), batch[1])


def train(folder: str, steps: int, pause: float) -> None:
    """Take steps, as far apart as the pause in seconds, and tell the time of the first due step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scope = ns.Scope(model, loss_fn, optimizer, ["gradient_flow"], every=2, record_to=folder)
    for step in range(steps):
        batch = (torch.randn(32, 8), torch.randint(3, (32,)))
        if step == 0:
            print(time.time(), flush=True)
        with scope.step(batch):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
        time.sleep(pause)
    scope.close()


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
