"""A network that is worse in eval than in train: the momentum of its norm is too small for forty steps.

``normscope check docs/examples/train_eval_gap.py:make_case`` finds the cause, and says what else the gap is made of.
"""

import torch
from torch import nn

import normscope as ns


def loss_fn(model, batch):
    """Return the cross-entropy of a batch."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def make_case():
    """Train a small network for forty steps, and return it with its data."""
    torch.manual_seed(0)
    x = 3 * torch.randn(640, 20) + 5
    y = (x[:, 0] > 5).long() + (x[:, 1] > 5).long()
    loader = [(x[i : i + 64], y[i : i + 64]) for i in range(0, 512, 64)]
    held_out = [(x[512:], y[512:])]
    model = nn.Sequential(
        nn.Linear(20, 64), nn.BatchNorm1d(64, momentum=0.001), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 3)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in loader * 5:
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()
    return ns.Case(model, loss_fn, loader, optimizer, eval_loader=held_out)
