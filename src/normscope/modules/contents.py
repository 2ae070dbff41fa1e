"""What tensors held as they passed: small tensors are copied and reduced all together, large ones are reduced at once.

On a small tensor every reduction costs a call, and next to nothing for its numbers: tensors of one number of samples
are laid side by side, and reduced together once the pass is over. On a large tensor the reading of memory costs: it is
reduced while it is at hand, and not copied.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normscope.modules.channels import in_memory_order, to_host

Array = np.ndarray[Any, np.dtype[Any]]

#: Most elements of a small tensor.
SMALL = 1 << 14

_WIDE = (torch.float32, torch.float64)


def is_small(tensor: Tensor) -> bool:
    """Whether a tensor costs more by the calls that reduce it than by its numbers."""
    return tensor.numel() <= SMALL


class Copy:
    """A copy of a small tensor, in float32 or float64, until ``Contents.settle`` has brought it to the host.

    Attributes:
        tensor: The copy, where the tensor was.
        array: The same numbers on the host, in the shape of the tensor; set by ``Contents.settle``.
    """

    __slots__ = ("array", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.clone() if tensor.dtype in _WIDE else tensor.float()
        self.array: Array

    def flat(self) -> Array:
        """Return the numbers in the order of memory."""
        return self.array.reshape(-1) if self.tensor.is_contiguous() else in_memory_order(self.tensor).cpu().numpy()


class Content:
    """The moments by channel of a batch ``(N, C, *)``: of a small batch with a copy of it, of a large one alone.

    Attributes:
        copy: The copy; None of a large batch.
        samples: N.
        channels: C.
        positions: Values a channel in a sample; 1 without positions.
        count: Values a channel, N * positions.
        moments: Mean and variance of a large batch until it is settled.
        group: What it was reduced together with; set by ``Contents.settle``, as all that follow.
        leads: Whether a probe reads it by sample: all such contents come first in their group.
        index: Its place among the contents of the group.
        columns: Its channels among those of the group.
    """

    __slots__ = ("channels", "columns", "copy", "count", "group", "index", "leads", "moments", "positions", "samples")

    def __init__(self, x: Tensor, moments: tuple[Tensor, Tensor] | None) -> None:
        self.copy = Copy(x) if moments is None else None
        self.moments = moments
        self.leads = False
        self.samples, self.channels, *_ = x.shape
        self.count = x.numel() // self.channels
        self.positions = self.count // self.samples
        self.group: Group
        self.index: int
        self.columns: slice

    @property
    def mean(self) -> Array:
        """Mean of each channel ``(C,)``, float64."""
        return self.group.mean[self.columns]

    @property
    def variance(self) -> Array:
        """Variance of each channel ``(C,)``, divisor ``count``."""
        return self.group.variance[self.columns]

    @property
    def deviations(self) -> Array:
        """Deviations of a small batch from the mean of their channel, ``(N, C)`` or ``(N, C, positions)``."""
        assert self.group.values is not None
        return self.group.values[:, self.columns]


class Group:
    """The channels of several contents side by side, in float64: those of all small batches of one shape but for C.

    Every sum is taken along one channel in one order, whatever stands beside it.

    Attributes:
        count: Values a channel.
        starts: First channel of each content.
        widths: Channels of each content.
        leading: How many contents lead.
        mean: Mean of each channel.
        variance: Its variance.
        values: Deviations from the channel's mean ``(N, channels)``, or ``(N, channels, positions)``; None of a large
            batch, as all that follow.
        squares: Their squares.
        total: Sum of the deviations for each sample ``(N, channels)``.
        raw: Sum of their squares for each sample.
    """

    __slots__ = ("count", "leading", "mean", "raw", "squares", "starts", "total", "values", "variance", "widths")

    def __init__(self, contents: Sequence[Content]) -> None:
        self.count = contents[0].count
        self.leading = sum(content.leads for content in contents)
        self.widths = [content.channels for content in contents]
        self.starts = [0, *accumulate(self.widths[:-1])]
        for index, (content, start, width) in enumerate(zip(contents, self.starts, self.widths, strict=True)):
            content.group, content.index, content.columns = self, index, slice(start, start + width)

        self.mean: Array
        self.variance: Array
        self.values: Array | None = None
        self.squares: Array | None = None
        self.total: Array | None = None
        self.raw: Array | None = None

    def of_large(self, mean: Array, variance: Array) -> None:
        """Take the moments of a large batch."""
        self.mean, self.variance = mean, variance

    def reduce(self, arrays: Sequence[Array]) -> None:
        """Reduce small batches."""
        values = np.concatenate(arrays, axis=1, dtype=np.float64)
        several = values.ndim > 2
        whole = np.add.reduce(values, axis=2) if several else values
        self.mean = np.add.reduce(whole, axis=0) / self.count
        values -= self.mean[:, None] if several else self.mean
        self.values, self.squares = values, values * values
        self.total = np.add.reduce(values, axis=2) if several else values
        self.raw = np.add.reduce(self.squares, axis=2) if several else self.squares
        self.variance = np.add.reduce(self.raw, axis=0) / self.count

    def by_content(self, rows: Array) -> Array:
        """Sum numbers by channel, ``(..., channels)``, over the channels of each content."""
        return np.add.reduceat(rows, self.starts, axis=-1)


class Contents:
    """All contents and copies of one step."""

    def __init__(self) -> None:
        self._contents: list[Content] = []
        self._copies: list[Copy] = []

    def add(self, x: Tensor, moments: tuple[Tensor, Tensor] | None) -> Content:
        """Note a large batch with mean and variance of its channels, or a small batch."""
        content = Content(x, moments)
        self._contents.append(content)
        if content.copy is not None:
            self._copies.append(content.copy)
        return content

    def copied(self, tensor: Tensor) -> Copy:
        """Copy a small tensor."""
        copy = Copy(tensor)
        self._copies.append(copy)
        return copy

    def settle(self) -> None:
        """Bring to the host what was added since the last time, and reduce it."""
        if not self._contents and not self._copies:
            return
        contents, self._contents = self._contents, []
        copies, self._copies = self._copies, []
        for copy, array in zip(copies, _arrays([copy.tensor for copy in copies]), strict=True):
            copy.array = array
        alike: dict[tuple[int, int], list[Content]] = {}
        large = [content for content in contents if content.copy is None]
        for content in contents:
            if content.copy is not None:
                alike.setdefault((content.samples, content.positions), []).append(content)
        with np.errstate(all="ignore"):
            for (_, positions), small in alike.items():
                small.sort(key=lambda content: not content.leads)
                copied = [content.copy.array for content in small if content.copy is not None]
                Group(small).reduce([by_channel(array, positions) for array in copied])
        if large:
            found = iter(to_host([part for content in large for part in content.moments or ()]))
            for content in large:
                Group([content]).of_large(next(found), next(found))
                content.moments = None


def by_channel(array: Array, positions: int) -> Array:
    """View a batch ``(N, C, *)`` as ``(N, C)``, or as ``(N, C, positions)`` where there are several positions."""
    if positions > 1:
        return array.reshape(*array.shape[:2], positions)
    return array if array.ndim == 2 else array.reshape(array.shape[:2])


def deviations_of(contents: Sequence[Content]) -> Array:
    """Return the deviations of small batches of one shape side by side: as they lie, if they lie so in their group."""
    first, last = contents[0], contents[-1]
    if all(
        content.group is first.group and content.columns.stop == following.columns.start
        for content, following in pairwise(contents)
    ) and (last.group.values is not None):
        return last.group.values[:, first.columns.start : last.columns.stop]
    return side_by_side(content.deviations for content in contents)


def side_by_side(arrays: Iterable[Array]) -> Array:
    """Lay batches ``(N, C)`` or ``(N, C, positions)`` of one N side by side, in float64."""
    return np.concatenate(list(arrays), axis=1, dtype=np.float64)


def _arrays(tensors: Sequence[Tensor]) -> Sequence[Array]:
    if all(tensor.is_cpu for tensor in tensors):
        return [tensor.numpy() for tensor in tensors]
    return to_host(tensors)


def same_content(tensor: Tensor, other: Tensor, version: int) -> bool:
    """Whether a tensor is the same part of the same memory as another, unchanged since the version noted."""
    if tensor._version != version:
        return False
    return tensor is other or (
        tensor.data_ptr() == other.data_ptr()
        and tensor.shape == other.shape
        and tensor.stride() == other.stride()
        and tensor.dtype == other.dtype
        and tensor.device == other.device
    )
