"""Parameters of which each process holds a part (FSDP), and sums over all parts."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter

SHARDED = (
    "parameters are sharded over processes (FSDP), and each holds only a part of them: what reads whole weights or "
    "evaluates the loss again cannot be read"
)

_WHOLE = (Tensor, Parameter)


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds; the tensor itself if it is not sharded."""
    if type(tensor) in _WHOLE:
        return tensor
    return tensor.to_local() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]


def is_distributed(tensor: Tensor) -> bool:
    """Whether a tensor is a view of one that lies on several processes."""
    if type(tensor) in _WHOLE:  # asked of every parameter several times a step
        return False
    return hasattr(tensor, "device_mesh") and hasattr(tensor, "placements")


def any_distributed(tensors: Iterable[Tensor]) -> bool:
    """Whether any of the tensors is a view of one that lies on several processes."""
    return bool([True for tensor in tensors if type(tensor) not in _WHOLE and is_distributed(tensor)])


def sharded(model: Module) -> str:
    """Name the first parameter of which this process holds only a part; an empty string if it holds all."""
    for name, parameter in model.named_parameters():
        if is_distributed(parameter) or type(parameter).__name__ == "FlatParameter" or hasattr(parameter, "ds_id"):
            return name
    return ""


def summed_over_shards(values: Sequence[float], of: Sequence[Tensor]) -> list[float]:
    """Add each value to those that the processes with the other parts of its tensor have.

    Every process must call it with the same tensors. One exchange for each group of processes; none without shards.

    Args:
        values: One for each tensor, such as the sum of squares of this process's part.
        of: The tensors.
    """
    totals = list(values)
    for group, indices in _groups(of):
        device = local(of[indices[0]]).device
        total = torch.tensor([totals[index] for index in indices], dtype=torch.float64, device=device)
        torch.distributed.all_reduce(total, group=group)
        for index, value in zip(indices, total.tolist(), strict=True):
            totals[index] = value
    return totals


def _groups(tensors: Iterable[Any]) -> list[tuple[Any, list[int]]]:
    found: dict[int, tuple[Any, list[int]]] = {}
    for index, tensor in enumerate(tensors):
        if not is_distributed(tensor):
            continue
        for axis, placement in enumerate(tensor.placements):
            if not placement.is_replicate():
                group = tensor.device_mesh.get_group(axis)
                found.setdefault(id(group), (group, []))[1].append(index)
    return list(found.values())
