"""Readings of one probe, as dictionaries."""

import torch

from kit import varied_networks as nets
from normscope.probes import Recorder


def read(model, loss_fn, batch, probe, optimizer=None, block=None):
    """Take one step, forward and backward if no block is given, and return {(site, name): value}."""
    recorder = Recorder(model, loss_fn, optimizer, [probe], every=1)
    with recorder.step(batch):
        if block is not None:
            block()
        else:
            loss_fn(model, batch).backward()
            if optimizer is not None:
                for each in optimizer if isinstance(optimizer, list) else [optimizer]:
                    each.step()
    return {(record.site, record.name): record.value for record in recorder.drain()}


def read_steps(model, batch, probe, *, lr=None, update=True, loss_fn=nets.loss_fn, steps=1):
    """Take steps of gradient descent, and return {(site, name): value} of the last."""
    optimizer = torch.optim.SGD(model.parameters(), lr) if lr else None
    recorder = Recorder(model, loss_fn, optimizer, [probe], every=1)
    for _ in range(steps):
        recorder.drain()
        with recorder.step(batch):
            if optimizer is not None:
                optimizer.zero_grad()
                loss_fn(model, batch).backward()
                if update:
                    optimizer.step()
    return {(record.site, record.name): record.value for record in recorder.drain()}


def by_name(reading, name):
    """Return {site: value} of one name."""
    return {site: value for (site, key), value in reading.items() if key == name}
