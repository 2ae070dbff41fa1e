"""Replays of another batch than the step's: kept ones, parts of one."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from normscope._errors import UsageError
from normscope.modules.state import RngState
from normscope.probes._replay import Piece, Replay


def batch_of(replay: Replay) -> Any:
    """Return the batch of the step."""
    return replay.batch


def beside(replay: Replay, batch: Any, streams: RngState | None = None) -> Replay:
    """Return a replay of the same open model and start on another batch, from other random streams if given."""
    other = copy.copy(replay)
    other.batch, other._origins, other.cache, other.draws_beside_torch = batch, {}, {}, None
    if streams is not None:
        other.start = copy.copy(replay.start)
        other.start.rng = streams
    return other


def kept(batch: Any) -> Any:
    """Return a copy of a batch of any structure that later writing does not reach."""
    return _mapped(batch, lambda tensor: tensor.detach().clone())


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

    return _mapped(batch, cut)


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

    _mapped(batch, look)
    if not found:
        raise UsageError("no tensor with an axis of samples was found in the batch")
    return found[0]


def _mapped(batch: Any, act: Any) -> Any:
    """Apply ``act`` to every tensor of a structure of mappings, sequences and objects, and return a new structure."""
    if isinstance(batch, Tensor):
        return act(batch)
    if isinstance(batch, Piece):  # of a step that accumulates
        return replace(batch, batch=_mapped(batch.batch, act))
    if isinstance(batch, (str, bytes)) or batch is None:
        return batch
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_mapped(value, act) for value in batch))
    if isinstance(batch, Mapping):
        new = copy.copy(batch)
        for key, value in batch.items():
            new[key] = _mapped(value, act)  # type: ignore[index]
        return new
    if isinstance(batch, Sequence) and isinstance(batch, (list, tuple)):
        return type(batch)(_mapped(value, act) for value in batch)
    if hasattr(batch, "__dict__") and not isinstance(batch, type) and not callable(batch):
        new = copy.copy(batch)
        for key, value in vars(batch).items():
            object.__setattr__(new, key, _mapped(value, act))
        return new
    return batch
