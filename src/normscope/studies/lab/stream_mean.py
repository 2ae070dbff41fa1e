"""The mean over features in a transformer's residual stream: its share, and how to do without it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from normscope.modules.state import traceless
from normscope.studies.lab.transformer import Transformer

_CENTRED = ("attention.out", "feedforward.contract")


def norm_places(model: Transformer) -> list[tuple[str, nn.Module]]:
    """Return names and modules of the norms of a pre-norm transformer, in the order of the forward pass."""
    kinds = ("attention_norm", "feedforward_norm")
    names = [f"blocks.{index}.{kind}" for index in range(len(model.blocks)) for kind in kinds]
    return [(name, model.get_submodule(name)) for name in (*names, "norm")]


def mean_shares(model: Transformer, x: Tensor) -> dict[str, float]:
    """Return which share of the mean square of each norm's input lies in its mean over features.

    The share of values that are independent of one another is one over the width on average.

    Args:
        model: A pre-norm transformer; left as it was.
        x: Inputs.

    Returns:
        By the name of the norm: mean over positions of the squared mean, over the mean of the squares.
    """
    shares: dict[str, float] = {}

    def reader(name: str) -> Any:
        def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            h = inputs[0].double()
            shares[name] = float(h.mean(-1).square().mean() / h.square().mean())

        return read

    hooks = [norm.register_forward_pre_hook(reader(name)) for name, norm in norm_places(model)]
    try:
        with traceless(model, streams=False), torch.no_grad():
            model.eval()
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return shares


@contextmanager
def centred_inputs(model: Transformer) -> Iterator[None]:
    """Take the mean over features out of what enters each norm, as long as this lasts."""

    def centre(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0] - inputs[0].mean(-1, keepdim=True),)

    hooks = [norm.register_forward_pre_hook(centre) for _, norm in norm_places(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class RmsWithShift(nn.Module):
    """Division by the root mean square, then a gain and a shift: layer norm of an input whose mean is 0."""

    def __init__(self, weight: Tensor, bias: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(weight.clone()), nn.Parameter(bias.clone()), eps

    def forward(self, x: Tensor) -> Tensor:
        """Map (*, features) to the same shape."""
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight + self.bias


def without_centring(model: Transformer) -> Transformer:
    """Return a pre-norm transformer of layer norms as one of RMS norms that computes the same function.

    What is written to the stream is centred in the weights: the mean over features is taken out of the embeddings, the
    positions, and the last matrix and bias of each branch. The stream then has no mean, and layer norm of it is RMS
    norm. Derived here; the argument is that only norms read the stream.

    Args:
        model: Its norms are layer norms with gain and shift; left as it was.
    """
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, module in twin.named_modules():
            if isinstance(module, nn.Embedding):
                module.weight.sub_(module.weight.mean(1, keepdim=True))
            elif isinstance(module, nn.Linear) and (name.endswith(_CENTRED) or name.startswith("embed")):
                module.weight.sub_(module.weight.mean(0, keepdim=True))
                module.bias.sub_(module.bias.mean())
        for parameter in (twin.positions, twin.token):
            if parameter is not None:
                parameter.sub_(parameter.mean(-1, keepdim=True))
    for name, norm in norm_places(twin):
        assert isinstance(norm, nn.LayerNorm)
        twin.set_submodule(name, RmsWithShift(norm.weight.detach(), norm.bias.detach(), norm.eps))
    return twin
