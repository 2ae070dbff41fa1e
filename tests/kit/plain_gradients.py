"""Loss and gradients of a copy of a model, by plain autograd: the twin of every replay."""

import copy

import torch

from kit.varied_networks import loss_fn


def plain_gradients(model, batch, streams, values=None):
    """Copy the model, load parameter values, set the random streams, run, differentiate.

    The model must have the modes and buffers with which the step began.

    Args:
        model: The model; it is left as it is.
        batch: Inputs and classes.
        streams: The random streams to begin from, with a method ``restore``.
        values: Parameter values by name; parameters that are not named keep theirs.

    Returns:
        The loss, and the gradient of each parameter by name, zeros for a parameter without one.
    """
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            if values is not None and name in values:
                parameter.copy_(values[name])
            parameter.grad = None
    streams.restore()
    loss = loss_fn(twin, batch)
    loss.backward()
    return loss.item(), {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in twin.named_parameters()
    }
