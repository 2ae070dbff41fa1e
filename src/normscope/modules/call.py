"""How a model is called with an example or a batch, and in which modes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

Call = Callable[[nn.Module, Any], Any]


def arguments(model: nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments that an example stands for, on the model's device.

    Args:
        model: The model.
        example: One input; or a tuple of arguments; or a mapping of keyword arguments.
    """
    example = to_device(model, example)
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, (tuple, list)) else ((example,), {})


def call_batch(model: nn.Module, batch: Any) -> Any:
    """Call a model with a batch: a tensor, a tuple or list whose first item is the input, a mapping of keywords."""
    batch = to_device(model, batch)
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)) and batch:
        return model(batch[0])
    return model(batch)


def to_device(model: nn.Module, values: Any) -> Any:
    """Return ``values`` with all tensors on the device of the model's first parameter or buffer."""
    anchor = next(model.parameters(), next(model.buffers(), None))
    if anchor is None:
        return values
    return tree_map_only(Tensor, lambda t: t.to(anchor.device), values)


def set_mode(model: nn.Module, training: bool) -> None:
    """Put every module into a mode: not through ``train()``, which a frozen norm remembers and does not obey."""
    for module in model.modules():
        module.training = training


@contextmanager
def modes_kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put every module back into its mode when the block ends."""
    modes = [(module, module.training) for module in modules]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def run(model: nn.Module, example: Any) -> Any:
    """Call a model with an example."""
    args, kwargs = arguments(model, example)
    return model(*args, **kwargs)
