"""Batches, arguments and outputs: tensors in structures of mappings, sequences and objects."""

import copy
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from normscope._errors import UsageError
from normscope.modules.rng import RngState


@dataclass(frozen=True, slots=True)
class Piece:
    """One of the batches that a step accumulates: its share in the loss, and the random streams at its beginning."""

    batch: Any
    share: float
    rng: RngState


def is_pieces(batch: Any) -> bool:
    """Whether a batch is the list of batches that one step accumulates."""
    return isinstance(batch, list) and bool(batch) and all(isinstance(piece, Piece) for piece in batch)


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors in a value of any structure that torch knows (``torch.utils._pytree``)."""
    if isinstance(value, Tensor):  # most modules are called with one tensor, which needs no walk
        return [value]
    if type(value) in (tuple, list):
        return [tensor for part in value for tensor in tensors(part)]
    if value is None or (type(value) is dict and not value):
        return []
    return [part for part in pytree.tree_leaves(value) if isinstance(part, Tensor)]


def finite(values: Sequence[Tensor]) -> bool:
    """Whether every value of every tensor is a finite number."""
    return all(_is_finite(tensor.detach()) for tensor in values if tensor.device.type != "meta")


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    if tensor.is_nested or tensor.dtype.itemsize < 2:  # nested tensors and numbers of eight bits have no sum
        parts = tensor.unbind() if tensor.is_nested else [tensor.float()]
        return all(bool(part.isfinite().all()) for part in parts)
    # The sum is finite unless a value is not, or the sum itself overflows: then look at each.
    return math.isfinite(float(tensor.sum())) or bool(tensor.isfinite().all())


def leading_tensor(output: Any) -> Tensor | None:
    """Return the first floating-point tensor in what a module returned, or None."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return next((found for part in output if (found := leading_tensor(part)) is not None), None)
    return None


def kept(batch: Any) -> Any:
    """Return a copy of a batch of any structure that later writing does not reach."""
    return mapped(batch, lambda tensor: tensor.detach().clone())


def part(batch: Any, index: int, parts: int, axis: int = 0) -> Any:
    """Return one of equal parts of a batch along the axis of its samples; what remains is left out.

    Cut are all tensors that are as long along the axis as the first one.

    Raises:
        UsageError: The batch has fewer samples than parts, or no tensor is found in it.
    """
    size = batch_size(batch, axis)
    if size // parts < 1:
        raise UsageError(f"a batch of {size} cannot be cut into {parts} parts")
    width = size // parts

    def cut(tensor: Tensor) -> Tensor:
        whole = tensor.ndim > axis and tensor.shape[axis] == size
        return tensor.narrow(axis, index * width, width) if whole else tensor

    return mapped(batch, cut)


def batch_size(batch: Any, axis: int = 0) -> int:
    """Return the length of the first tensor of a batch along the axis of its samples.

    Raises:
        UsageError: No tensor with such an axis is found in it.
    """
    found: list[int] = []

    def look(tensor: Tensor) -> Tensor:
        if tensor.ndim > axis:
            found.append(tensor.shape[axis])
        return tensor

    mapped(batch, look)
    if not found:
        raise UsageError("no tensor with an axis of samples was found in the batch")
    return found[0]


def mapped(batch: Any, act: Callable[[Tensor], Tensor]) -> Any:
    """Apply ``act`` to every tensor of a structure of mappings, sequences and objects, and return a new structure."""
    return _mapped(batch, act, {})


def _mapped(batch: Any, act: Callable[[Tensor], Tensor], done: dict[int, Any]) -> Any:
    if isinstance(batch, Tensor):
        return act(batch)
    if isinstance(batch, Piece):
        return replace(batch, batch=_mapped(batch.batch, act, done))
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_mapped(value, act, done) for value in batch))
    if isinstance(batch, MutableMapping):
        new = copy.copy(batch)
        for key, value in batch.items():
            new[key] = _mapped(value, act, done)
        return new
    if isinstance(batch, Mapping):
        return type(batch)({key: _mapped(value, act, done) for key, value in batch.items()})  # type: ignore[call-arg]
    if isinstance(batch, (list, tuple)):
        return type(batch)(_mapped(value, act, done) for value in batch)
    if hasattr(batch, "__dict__") and not isinstance(batch, type) and not callable(batch):
        if id(batch) not in done:  # an object may hold itself
            done[id(batch)] = new = copy.copy(batch)
            for key, value in vars(batch).items():
                object.__setattr__(new, key, _mapped(value, act, done))
        return done[id(batch)]
    return batch


def cut(batch: Any, parts: int) -> list[Any] | None:
    """Cut every tensor of a batch along its first axis; None if they differ in length or are too short."""
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in tensors(batch)}
    if len(lengths) != 1 or lengths.pop() < 2 * parts:
        return None
    return [part(batch, index, parts) for index in range(parts)]
