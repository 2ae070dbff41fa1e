"""Readings of one probe, as dictionaries."""

import copy

import torch

from kit import varied_networks as nets
from kit.training_loops import seed_all
from normscope.modules.rng import RngState
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


def read_beside_copy(net, probe, *, steps=2, lr=0.3, loss_fn=nets.loss_fn, size=16):
    """Train a net in float64, and return the last step's reading with what a plain twin needs to repeat the step.

    Returns:
        The reading {(site, name): value}, a copy of the model as the step began, the parameters after the step by
        name, the batch, and the random streams as the step began.
    """
    model = nets.make(net, dtype=torch.float64)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr, momentum=0.9)
    recorder = Recorder(model, loss_fn, optimizer, probes=[probe], every=1)
    seed_all()
    for batch in nets.batches(net, steps, size=size, dtype=torch.float64):
        before, streams = copy.deepcopy(model), RngState()
        recorder.drain()
        with recorder.step(batch):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
    after = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return {(record.site, record.name): record.value for record in recorder.drain()}, before, after, batch, streams


def by_name(reading, name):
    """Return {site: value} of one name."""
    return {site: value for (site, key), value in reading.items() if key == name}
