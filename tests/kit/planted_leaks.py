"""Traces that code could leave in a perceptron with batch norm behind its first layer, by what they are left in."""

import random

import numpy as np
import torch


def set_grad(model):
    model[0].weight.grad = torch.ones_like(model[0].weight)


LEAKS = {
    "buffer": lambda model: model[1].running_mean.add_(1e-7),
    "parameter": lambda model: model[0].weight.data.mul_(1 + 1e-6),
    "stream": lambda model: torch.rand(1),
    "numpy": lambda model: np.random.rand(),  # noqa: NPY002
    "python": lambda model: random.random(),
    "gradient": set_grad,
    "mode": lambda model: model.eval(),
    "hook": lambda model: model[2].register_forward_hook(lambda *_: None),
    "frozen": lambda model: model[0].weight.requires_grad_(False),
    "set": lambda model: model[0]._non_persistent_buffers_set.add("left"),
    "buffer that is another": lambda model: model[1]._buffers.update(running_mean=model[1].running_mean + 1),
    "attribute": lambda model: setattr(model[0], "left", 1),
}
STREAMS = ("stream", "numpy", "python")  # those that draw a random number
