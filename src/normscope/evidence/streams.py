"""Streams of data that alternate from batch to batch, found by what norms are given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from normscope.evidence.apart import APART, Apart, apart_in_several
from normscope.evidence.moments import ALIKE, Moments, excess_of_means
from normscope.evidence.places import Place, by_place

_CHANCE, _QUANTILE = 9.0, 0.75


@dataclass(frozen=True, slots=True)
class Streams:
    """Kinds of batches that come again and again.

    Attributes:
        of_batch: By number of the batch in the loader the number of its stream, from 0 in order of appearance.
        apart: How far apart the streams lie at each norm at which they differ.
    """

    of_batch: Mapping[int, int]
    apart: Mapping[str, Apart]

    @property
    def count(self) -> int:
        """Number of streams."""
        return 1 + max(self.of_batch.values())


def find_streams(moments: Mapping[str, Sequence[Moments]], eps: Mapping[str, float]) -> Streams | None:
    """Find out whether batches are of several kinds, each of which comes again after another has come.

    Two batches are of one kind if, in the upper quartile over channels, the squared difference of their means, and of
    their mean squares about them, is at most nine times what samples drawn at random make it; so are two that others
    join in such steps. Every kind must have two batches, whose means differ no more than ``ALIKE`` allows at any norm,
    and the kinds must lie ``APART`` at some norm. Kinds that come one after the other are data in order, not streams.

    Args:
        moments: By norm, what it is given.
        eps: By norm, what it adds to variances.
    """
    best: Streams | None = None
    for path, several in moments.items():
        labels = _labels(several)
        if labels is None or (best is not None and labels == best.of_batch):
            continue
        if any(_in_order(calls, labels) for calls in moments.values()):
            continue
        every = {other: _apart(calls, labels, eps[other]) for other, calls in moments.items()}
        found = {other: one for other, one in every.items() if one is not None and one.divergence > APART}
        if path in found and (best is None or _most(found) > _most(best.apart)):
            best = Streams(labels, found)
    return best


def _in_order(several: Sequence[Moments], labels: Mapping[int, int]) -> bool:
    """Whether means differ by more than chance within kinds too: kinds do not explain them."""
    found = [excess_of_means(calls, labels) for calls in by_place(several).values()]
    return any(one is not None and one[0] > ALIKE for one in found)


def _most(found: Mapping[str, Apart]) -> float:
    return max(one.divergence for one in found.values())


def _apart(calls: Sequence[Moments], labels: Mapping[int, int], eps: float) -> Apart | None:
    families = []
    for several in by_place(calls).values():
        kinds: dict[int, list[Moments]] = {}
        for call in several:
            if call.batch in labels:
                kinds.setdefault(labels[call.batch], []).append(call)
        if len(kinds) > 1:
            families.append(list(kinds.values()))
    return apart_in_several(families, eps) if families else None


def _labels(calls: Sequence[Moments]) -> dict[int, int] | None:
    batches: dict[int, dict[Place, Moments]] = {}
    for call in calls:
        if call.samples > 1:
            batches.setdefault(call.batch, {})[call.place] = call
    numbers = sorted(batches)
    label = {number: number for number in numbers}
    for index, one in enumerate(numbers):
        for other in numbers[:index]:
            if label[one] != label[other] and _distance(batches[one], batches[other]) <= _CHANCE:
                old, new = label[one], label[other]
                label = {number: new if was == old else was for number, was in label.items()}
    sequence = [label[number] for number in numbers]
    kinds = list(dict.fromkeys(sequence))
    runs = sum(a != b for a, b in pairwise(sequence)) + 1
    if len(kinds) < 2 or runs <= len(kinds) or min(map(sequence.count, kinds)) < 2:
        return None
    return {number: kinds.index(label[number]) for number in numbers}


def _distance(one: Mapping[Place, Moments], other: Mapping[Place, Moments]) -> float:
    """Return the larger of the two squared differences over what chance makes them: mean over places."""
    found = []
    for place in one.keys() & other.keys():
        a, b = one[place], other[place]
        of_means = _times(a.mean - b.mean, a.of_means / a.samples + b.of_means / b.samples, a.variance + b.variance)
        spread = a.of_squares / a.samples + b.of_squares / b.samples
        of_squares = _times(a.variance - b.variance, spread, (a.variance + b.variance).square())
        found.append(torch.stack([of_means, of_squares]))
    return float(torch.stack(found).mean(0).max()) if found else 0.0


def _times(difference: Tensor, expected: Tensor, scale: Tensor) -> Tensor:
    floor = 1e-9 * scale + 1e-30  # channels that are constant but for rounding say nothing
    return (difference.square() / (expected + floor)).quantile(_QUANTILE)
