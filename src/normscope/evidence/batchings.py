"""Batches mixed anew."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from normscope.modules.batches import tensors


def mixed_anew(taken: list[Any], like: Any) -> list[Any] | None:
    """Return the samples of some batches shuffled, in batches of the size of another; a remainder is left out.

    Args:
        taken: The batches.
        like: The batch whose size is wanted. Fewer samples make one batch.

    Returns:
        The batches; None where batches are not tensors of samples, all of the same shapes.
    """
    size = next((len(leaf) for leaf in tensors(like) if leaf.ndim), 0)
    columns, form = _columns(taken)
    if not columns or size < 2:
        return None
    total = len(columns[0])
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    parts = [part for part in order.split(size) if len(part) == min(size, total)]
    return [pytree.tree_unflatten([column[part.to(column.device)] for column in columns], form) for part in parts]


def _columns(taken: list[Any]) -> tuple[list[Tensor], Any]:
    leaves = [pytree.tree_flatten(batch) for batch in taken]
    form = leaves[0][1]
    for found, other in leaves:
        counts = {len(leaf) if isinstance(leaf, Tensor) and leaf.ndim else -1 for leaf in found}
        if other != form or len(counts) != 1 or -1 in counts:
            return [], form
    try:
        return [torch.cat(column) for column in zip(*(found for found, _ in leaves), strict=True)], form
    except RuntimeError:  # samples of several shapes
        return [], form
