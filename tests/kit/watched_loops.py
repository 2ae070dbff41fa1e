"""A small network, and the loops that people train it with."""

import torch
from torch import nn


def make(dropout=0.1, out=3):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 16), nn.Linear(16, out)
    )


def data(count, size=16):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 8, generator=generator), torch.randint(0, 3, (size,), generator=generator))
        for _ in range(count)
    ]


def entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def state_of(model, *optimizers):
    """Return everything that training has made, in a form that compares bit for bit."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        for index, held in optimizer.state_dict()["state"].items():
            tensors |= {f"{number}.{index}.{k}": v.clone() for k, v in held.items() if isinstance(v, torch.Tensor)}
    return tensors | {"rng": torch.get_rng_state()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def plain_loop(model, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()


def accumulating_loop(model, optimizer, batches):
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        optimizer.zero_grad()
        for x, y in (first, second):
            (nn.functional.cross_entropy(model(x), y) / 2).backward()
        optimizer.step()


def closure_loop(model, optimizer, batches):
    """As a trainer runs a step: the forward and the backward pass lie inside the optimizer's step."""
    for x, y in batches:

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        optimizer.step(closure)


def parts_loop(model, optimizer, batches):
    """As Lightning does: the parts of the model are called, never the model itself."""
    for x, y in batches:
        optimizer.zero_grad()
        for part in model:
            x = part(x)
        nn.functional.cross_entropy(x, y).backward()
        optimizer.step()


def evaluating_loop(model, optimizer, batches):
    for x, y in batches:
        plain_loop(model, optimizer, [(x, y)])
        model.eval()
        with torch.no_grad():
            model(x)
        model(x).sum()  # an evaluation that forgets no_grad
        model.train()


LOOPS = [plain_loop, accumulating_loop, closure_loop, parts_loop, evaluating_loop]
