"""Ghost batches: groups of consecutive samples, each with statistics of its own (Hoffer et al., 2017, algorithm 1).

A group is a channel more: samples of ``k`` groups ``(k n, C, *)`` are folded to ``(n, k C, *)``, and normalizing that
over its batch is normalizing every group by itself.
"""

import torch
from torch import Tensor


def group_sizes(samples: int, size: int, positions: int) -> list[tuple[int, int]]:
    """Split a batch into groups of consecutive samples.

    All have ``size`` samples but the last, which has the remaining ones. If they are a single value a channel,
    which has no variance, it joins the group before it.

    Args:
        samples: How many there are.
        size: Of a group.
        positions: Values that each sample has in a channel.

    Returns:
        Pairs of how many groups, and how many samples each of them has; at most two.
    """
    groups, rest = divmod(samples, size)
    if groups == 0:
        return [(1, rest)]
    if rest == 0:
        return [(groups, size)]
    if rest * positions > 1:
        return [(groups, size), (1, rest)]
    return [(1, size + rest)] if groups == 1 else [(groups - 1, size), (1, size + rest)]


def fold(x: Tensor, groups: int) -> Tensor:
    """Turn ``groups`` of consecutive samples into channels: ``(k n, C, *)`` to ``(n, k C, *)``."""
    if groups == 1:
        return x
    return x.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)


def unfold(x: Tensor, groups: int) -> Tensor:
    """Undo ``fold``: ``(n, k C, *)`` to ``(k n, C, *)``, in the memory format of a batch."""
    if groups == 1:
        return x
    return x.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)


def repeat(values: Tensor | None, groups: int) -> Tensor | None:
    """Give every group the values ``(C,)`` of its channels."""
    return values if values is None or groups == 1 else values.expand(groups, *values.shape).flatten()


def fold_mask(mask: Tensor, groups: int, channels: int) -> Tensor:
    """Fold the mask ``(k n, 1 or C, *)`` of values with ``channels`` channels as they are folded."""
    return fold(mask.expand(mask.shape[0], channels, *mask.shape[2:]), groups)


def split(x: Tensor, parts: list[tuple[int, int]]) -> tuple[Tensor, ...]:
    """Cut a batch along its samples into the parts that have groups of one size."""
    return (x,) if len(parts) == 1 else torch.split(x, [groups * size for groups, size in parts])
