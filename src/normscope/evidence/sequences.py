"""Sequences in the layouts in which norms are given them, and the constant tails by which padding shows."""

from collections.abc import Sequence

import torch
from torch import Tensor

_SHORTEST = 3


def as_sequences(x: Tensor, lead: Sequence[int]) -> list[Tensor]:
    """Return a norm's input as sequences ``(N, C, L)``, in each way in which it may be some.

    Args:
        x: The input: ``(N, C, L)``; maps with one axis of length 1, ``(N, C, 1, L)`` or ``(N, C, L, 1)``; or the
            positions of all sequences as rows ``(N * L, C)`` or ``(L * N, C)``.
        lead: Shape of the first tensor with two axes or more that the model itself was called with, for rows: it tells
            how many sequences there are. Its first axis, and its second where that is not the length, may be N.

    Returns:
        Views; none where it is no sequence of three positions or more.
    """
    if x.ndim == 4 and 1 in x.shape[2:]:
        x = x.flatten(2)
    if x.ndim == 3:
        return [x] if x.shape[2] >= _SHORTEST else []
    if x.ndim != 2 or len(lead) < 2:
        return []
    found = []
    samples_first, length_first = lead[0], lead[1]
    if samples_first > 1 and len(x) % samples_first == 0 and len(x) // samples_first >= _SHORTEST:
        found.append(x.view(samples_first, -1, x.shape[1]).transpose(1, 2))
    if len(lead) > 2 and lead[0] * lead[1] == len(x) and length_first > 1 and lead[0] >= _SHORTEST:
        found.append(x.view(lead[0], lead[1], x.shape[1]).permute(1, 2, 0))
    return found


def tail_lengths(x: Tensor) -> Tensor:
    """Return for each sample of ``(N, C, L)`` how many columns at its end are equal, if three or more are; else 0."""
    same = (x == x[:, :, -1:]).all(1).flip(1).long().cumprod(1).sum(1)
    return torch.where(same >= _SHORTEST, same, 0)


def tail_share(x: Tensor) -> float:
    """Return the share of positions of ``(N, C, L)`` that lie in constant tails."""
    return float(tail_lengths(x).double().mean()) / x.shape[2]
