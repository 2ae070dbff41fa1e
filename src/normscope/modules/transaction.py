"""All or nothing: a model in the middle of an operation is put back together if the operation fails.

What is remembered of every module: its class, its attributes, which parameters, buffers, submodules and hooks it has
(by identity), its mode, the values of its tensors, and of every parameter ``requires_grad`` and the identity of its
gradient. The price is one copy of the model's state while the operation lasts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from normscope._errors import UsageError


class _Snapshot:
    """A model as it was, and the way back."""

    def __init__(self, model: nn.Module) -> None:
        self.modules: list[tuple[nn.Module, type, dict[str, Any], dict[str, Any]]] = []
        self.tensors: dict[int, tuple[Tensor, Tensor, Tensor, bool, Tensor | None]] = {}
        for module in model.modules():
            attributes = dict(vars(module))
            contents = {k: v.copy() for k, v in attributes.items() if isinstance(v, (dict, list, set))}
            self.modules.append((module, type(module), attributes, contents))
            found = [*module._parameters.values(), *module._buffers.values()]
            for tensor in found + [v for v in attributes.values() if isinstance(v, Tensor)]:
                if tensor is None or id(tensor) in self.tensors:
                    continue
                if is_lazy(tensor):
                    raise UsageError(
                        f"{type(module).__name__} has no shape yet: run one forward of the model, then operate on it"
                    )
                grad = tensor.grad if tensor.is_leaf else None
                data = tensor.detach()
                self.tensors[id(tensor)] = (tensor, data, data.clone(), tensor.requires_grad, grad)

    @torch.no_grad()
    def restore(self) -> None:
        for module, kind, attributes, contents in self.modules:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in contents.items():
                held = attributes[name]  # the same container, so that whoever holds it (a hook's handle) still does
                held.clear()
                held.extend(content) if isinstance(held, list) else held.update(content)
        for tensor, data, value, requires_grad, grad in self.tensors.values():
            if tensor.data_ptr() != data.data_ptr() or tensor.dtype != data.dtype or tensor.shape != data.shape:
                tensor.data = data  # moved or cast: back to its own memory
            if not _same_bits(data, value):
                tensor.copy_(value)
            if tensor.is_leaf:
                tensor.requires_grad_(requires_grad)
                tensor.grad = grad


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors are equal, NaN and the sign of zero included; unequal if that cannot be said."""
    if a.layout != torch.strided or a.is_meta:
        return False
    return torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8))


@contextmanager
def transaction(model: nn.Module) -> Iterator[None]:
    """Put the model back as it was if the block raises, whatever it raises."""
    snapshot = _Snapshot(model)
    try:
        yield
    except BaseException:
        snapshot.restore()
        raise


@contextmanager
def traceless(model: nn.Module, *, rng: bool = True) -> Iterator[None]:
    """Put the model back as it was after the block, and torch's random state too unless ``rng`` is False."""
    snapshot = _Snapshot(model)
    devices = sorted({t.device.index or 0 for t in model.parameters() if t.device.type == "cuda"})
    with torch.random.fork_rng(devices, enabled=rng):
        try:
            yield
        finally:
            snapshot.restore()
