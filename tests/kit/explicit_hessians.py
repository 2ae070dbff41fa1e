"""Hessians written out, and a net small enough for that; everything in float64."""

import copy

import torch
from torch import nn
from torch.func import functional_call

from kit import varied_networks as nets
from normscope.probes import Replay

DOUBLE = torch.float64


def small_mlp(seed=0, *, norm=True, smooth=False):
    """An MLP small enough for its Hessian to be written out, its running statistics away from the batch's."""
    torch.manual_seed(seed)
    act = nn.Tanh if smooth else nn.ReLU

    def block(inputs, width):
        return [nn.Linear(inputs, width), *([nn.BatchNorm1d(width)] if norm else []), act()]

    model = nn.Sequential(*block(6, 5), *block(5, 5), nn.Linear(5, 4)).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.2, 0.6)
    return model


def small_batch(size=24, seed=3):
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(size, 6, generator=stream, dtype=DOUBLE), torch.randint(4, (size,), generator=stream)


def flat_loss(model, batch, frozen=False, loss_fn=nets.loss_fn):
    """The loss as a function of one flat vector of parameters, on a copy of the model."""
    twin = copy.deepcopy(model)
    if frozen:
        for module in twin.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
    names = [name for name, _ in twin.named_parameters()]
    shapes = [parameter.shape for parameter in twin.parameters()]
    sizes = [parameter.numel() for parameter in twin.parameters()]

    def loss(theta):
        values = {n: p.view(s) for n, p, s in zip(names, theta.split(sizes), shapes, strict=True)}
        buffers = {name: buffer.clone() for name, buffer in twin.named_buffers()}
        return loss_fn(lambda x: functional_call(twin, {**values, **buffers}, (x,)), batch)

    theta = torch.cat([parameter.detach().flatten() for parameter in twin.parameters()])
    return loss, theta


def explicit(model, batch, frozen=False, loss_fn=nets.loss_fn):
    """Loss, gradient and Hessian written out, row by row."""
    loss, theta = flat_loss(model, batch, frozen, loss_fn)
    theta = theta.requires_grad_()
    value = loss(theta)
    (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
    rows = [torch.autograd.grad(part, theta, retain_graph=True)[0] for part in gradient]
    return value.item(), gradient.detach(), torch.stack(rows)


def slices(model):
    """Where each parameter lies in the flat vector."""
    found, at = {}, 0
    for name, parameter in model.named_parameters():
        found[name] = slice(at, at + parameter.numel())
        at += parameter.numel()
    return found


def replay_of(model, batch, loss_fn=nets.loss_fn):
    """Return a replay of a step that begins at the model as it is."""
    return Replay(model, loss_fn, batch)


def unpadded(replay, vector):
    """Join the parts of a vector, as the twins lay them out."""
    flat = [torch.empty(0)] * len(replay.flat)
    for kind, part in zip(replay.start.trainable_kinds, vector, strict=True):
        flat[kind] = part
    return torch.cat([slot.of(flat).flatten() for slot in replay.slots if slot.trainable])
