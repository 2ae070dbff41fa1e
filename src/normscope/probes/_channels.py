"""Moments of every channel of a batch ``(N, C, *)``, in two reads of it, and the way of small results to the host."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CACHE = 1 << 19  # bytes of a tensor that are read at a time where it is read more than once
_FAR = 1e3  # square of mean over standard deviation from which on squares are taken about the mean


@dataclass(frozen=True, slots=True)
class Channels:
    """What a batch says about the moments of its channels.

    Attributes:
        values: The batch ``(N, C, P)``, or ``(N, C)`` if it has no positions; as given or less ``about``.
        positions: P; 1 without.
        count: Values a channel, N * P.
        mean: Mean of each channel ``(C,)``.
        variance: Its variance ``(C,)``, divisor ``count``.
        offset: Sum of the deviations from the channel's mean, for each sample ``(N, C)``.
        squares: Sum of their squares, for each sample ``(N, C)``.
        about: What ``values`` have been taken about: the mean ``(C,)``, or None for zero.
    """

    values: Tensor
    positions: int
    count: int
    mean: Tensor
    variance: Tensor
    offset: Tensor
    squares: Tensor
    about: Tensor | None

    def inner(self, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sums over each channel of ``other``, of its square, and of it times the deviations."""
        total, squares, product = _sums(other.reshape(self.values.shape), self.values)
        return total, squares, product if self.about is not None else product - self.mean * total


def channels(x: Tensor) -> Channels:
    """Return the moments of ``x`` by channel, in float64 where there are positions, else in float32 or wider.

    Without positions deviations are formed. With them, sums and sums of squares of each sample and channel are taken in
    the type of ``x``; where a mean is more than 30 standard deviations (or wherever asking that would stall a device),
    once more about the mean.

    Args:
        x: Batch ``(N, C, *)``.
    """
    x = x if x.dtype == torch.float64 else x.float()
    if x.ndim <= 2 or x[0, 0].numel() == 1:
        x = x.reshape(x.shape[0], -1)
        mean = x.sum(0) / x.shape[0]
        deviations = x - mean
        squares = deviations * deviations
        return Channels(deviations, 1, x.shape[0], mean, squares.sum(0) / x.shape[0], deviations, squares, about=mean)
    x = x.flatten(2)
    size, _, positions = x.shape
    count = size * positions
    on_host = x.device.type == "cpu"
    if on_host:
        total, norms = _by_pieces(x, lambda piece: (piece.sum(2), torch.linalg.vector_norm(piece, dim=2)), x)
        total, squares = total.double(), norms.double().square()
    else:
        total = x.sum(2).double()
    mean = total.sum(0) / count
    if on_host:
        squares = squares - 2 * mean * total + positions * mean * mean
        variance = squares.sum(0).clamp(min=0) / count
    if not on_host or bool((mean * mean > _FAR * variance).any()):
        about = mean.to(x.dtype)
        x = x - about[:, None]
        offset = x.sum(2).double()
        shift = offset.sum(0) / count  # what rounding the mean has left
        squares = _square_sums(x) - 2 * shift * offset + positions * shift * shift
        variance = squares.sum(0).clamp(min=0) / count
        return Channels(x, positions, count, mean, variance, offset - positions * shift, squares, about)
    return Channels(x, positions, count, mean, variance, total - positions * mean, squares, None)


def _square_sums(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=2).double().square()


def _sums(other: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    other = other.to(values.dtype)
    if values.ndim == 2:
        return other.sum(0), (other * other).sum(0), (other * values).sum(0)

    def of(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return one.sum(2), torch.linalg.vector_norm(one, dim=2), row_products(one, two)

    total, norms, product = _by_pieces(other, of, other, values) if other.device.type == "cpu" else of(other, values)
    return total.double().sum(0), norms.double().square().sum(0), product.double().sum(0)


def _by_pieces(x: Tensor, act: Callable[..., tuple[Tensor, ...]], *whole: Tensor) -> tuple[Tensor, ...]:
    """Do several reductions by sample on pieces that stay in a processor's cache between them."""
    each = max(1, _CACHE // (x[0].numel() * x.element_size()))
    if each >= len(x):
        return act(*whole)
    found = [act(*pieces) for pieces in zip(*(tensor.split(each) for tensor in whole), strict=True)]
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def row_products(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner products of ``a`` and ``b`` along the last axis, without writing their product out."""
    if a.device.type != "cpu":
        return torch.linalg.vecdot(a, b)
    return torch.from_numpy(np.einsum("...p,...p->...", a.numpy(), b.numpy()))


def to_host(tensors: Sequence[Tensor]) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """Bring tensors to the host as float64 arrays of their shapes, in one transfer a device."""
    if all(tensor.device.type == "cpu" for tensor in tensors):
        return [_plain(tensor).numpy().astype(np.float64) for tensor in tensors]
    found: list[Any] = [None] * len(tensors)
    for device in {tensor.device for tensor in tensors}:
        here = [index for index, tensor in enumerate(tensors) if tensor.device == device]
        wide = torch.float32 if device.type == "mps" else torch.float64
        flat = torch.cat([tensors[index].to(wide).reshape(-1) for index in here]).cpu().double().numpy()
        ends = np.cumsum([tensors[index].numel() for index in here])
        for index, part in zip(here, np.split(flat, ends[:-1]), strict=True):
            found[index] = part.reshape(tensors[index].shape)
    return found


def _plain(tensor: Tensor) -> Tensor:
    """Give a type that NumPy knows."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def scalars(tensors: Sequence[Tensor]) -> list[float]:
    """Bring tensors of one element to the host, in one transfer where they lie on one device."""
    if len({(tensor.device, tensor.dtype) for tensor in tensors}) == 1:
        return torch.stack([tensor.reshape(()) for tensor in tensors]).tolist()
    return [float(part) for part in to_host(tensors)]


def in_memory_order(output: Tensor) -> Tensor:
    """Flatten without a copy where the elements lie dense; their order does not matter to a distribution."""
    if output.is_contiguous():
        return output.reshape(-1)
    by_stride = sorted(range(output.ndim), key=output.stride, reverse=True)
    return output.permute(by_stride).reshape(-1)


def coprime_stride(count: int, sample: int) -> int:
    """Return the smallest step that leaves at most ``sample`` of ``count`` elements and shares no factor with it."""
    stride = math.ceil(count / sample)
    while math.gcd(stride, count) != 1:
        stride += 1
    return stride
