"""Small training set-ups, each made anew by a function, as a user hands them to a comparison."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import normscope as ns


def points(count=64, features=6, classes=3, seed=0):
    """Return inputs and labels that a linear layer can tell apart."""
    stream = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, features, generator=stream)
    return inputs, (inputs @ torch.randn(features, classes, generator=torch.Generator().manual_seed(9))).argmax(1)


def entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def dense(norm=nn.BatchNorm1d, *, dropout=0.0, width=8):
    layers = [nn.Linear(6, width), norm(width), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(width, width), norm(width), nn.ReLU(), nn.Linear(width, 3))


def loaders(batch_size=16):
    train = DataLoader(TensorDataset(*points()), batch_size, shuffle=True, drop_last=True)
    return train, DataLoader(TensorDataset(*points(48, seed=1)), batch_size)


def make_layer_norm_case():
    model = dense(nn.LayerNorm)
    train, test = loaders()
    return ns.Case(model, entropy, train, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), test)


def make_case():
    model = dense(dropout=0.2)
    train, test = loaders()
    return ns.Case(model, entropy, train, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), test)


def make_case_without_norms():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    train, test = loaders()
    return ns.Case(model, entropy, train, torch.optim.SGD(model.parameters(), 0.1), test)


def make_seeded_case():
    torch.manual_seed(3)
    return make_case()


def make_scheduled_case():
    """Make a set-up whose step, schedule and averaged weights are the user's own."""
    model = dense()
    averaged = dense()
    averaged.load_state_dict(model.state_dict())
    for parameter in averaged.parameters():
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    def step(model, batch):
        optimizer.zero_grad()
        entropy(model, batch).backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for slow, fast in zip(averaged.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 0.1)

    train, test = loaders()
    return ns.Case(model, entropy, train, optimizer, test, step=step, averaged=averaged)
