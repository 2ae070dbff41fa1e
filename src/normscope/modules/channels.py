"""Moments of every channel of a batch ``(N, C, *)``, in two reads of it, and the way of small results to the host."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normscope.modules.shards import any_distributed, local, summed_over_shards

_CACHE = 1 << 20  # bytes of a tensor that are read at a time where it is read more than once
_FEW = 4  # samples by which it is asked first whether a unit is ever above zero
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
        about: What ``values`` have been taken about: the mean ``(C,)``, or None for zero.
        shift: Mean of ``values`` of each channel ``(C,)``: what rounding the mean has left, where it was taken off.
        total: Sum of ``values`` for each sample ``(N, C)``.
        raw: Sum of their squares for each sample ``(N, C)``.
    """

    values: Tensor
    positions: int
    count: int
    mean: Tensor
    variance: Tensor
    about: Tensor | None
    shift: Tensor | None
    total: Tensor
    raw: Tensor

    def deviations(self) -> tuple[Tensor, Tensor]:
        """Return for each sample ``(N, C)`` the sums of the deviations from the channel's mean and of their squares."""
        if self.shift is None:
            return self.total, self.raw
        offset = self.total - self.positions * self.shift
        return offset, self.raw - self.shift * (self.total + offset)

    def inner(self, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sums over each channel of ``other``, of its square, and of it times the deviations."""
        total, squares, product = _sums(other.reshape(self.values.shape), self.values)
        return total, squares, product if self.shift is None else product - self.shift * total


def channels(x: Tensor) -> Channels:
    """Return the moments of ``x`` by channel, in float64 where there are positions, else in float32 or wider.

    Without positions deviations are formed. With them, sums and sums of squares of each sample and channel are taken in
    the type of ``x``; where a mean is more than 30 standard deviations (or wherever asking that would stall a device),
    once more about the mean.

    Args:
        x: Batch ``(N, C, *)``.
    """
    x = x if x.dtype == torch.float64 else x.float()
    size = x.shape[0]
    if x.ndim <= 2 or x[0, 0].numel() == 1:
        x = x.reshape(size, -1)
        mean = x.sum(0) / size
        values = x - mean
        squares = values * values
        return Channels(values, 1, size, mean, squares.sum(0) / size, mean, None, values, squares)
    x = x.flatten(2)
    positions = x.shape[2]
    count = size * positions
    if x.device.type == "cpu":
        total, raw, shift, variance = _sums_by_sample(x, count)
        mean = shift
        if not bool((mean * mean > _FAR * variance).any()):
            return Channels(x, positions, count, mean, variance, None, shift, total, raw)
    else:
        mean = x.sum((0, 2)).double() / count
    about = mean.to(x.dtype)
    x = x - about[:, None]
    total, raw, shift, variance = _sums_by_sample(x, count)
    return Channels(x, positions, count, about.double() + shift, variance, about, shift, total, raw)


def ever_positive(x: Tensor, axis: int) -> Tensor:
    """Return for each unit whether any of its values is above zero, or NaN.

    On the CPU a few samples decide it for nearly all units, so that the rest is read for the others alone.

    Args:
        x: Batch ``(N, *)`` of two axes or more.
        axis: Axis of the units.
    """
    others = [other for other in range(x.ndim) if other != axis]
    if axis == 0 or x.device.type != "cpu" or len(x) <= _FEW:
        return _is_positive(x.amax(others))
    found = _is_positive(x[:_FEW].amax(others))
    if not found.all():
        left = (~found).nonzero()[:, 0]
        found[left] = _is_positive(x[_FEW:].index_select(axis, left).amax(others))
    return found


def _is_positive(peaks: Tensor) -> Tensor:
    return (peaks > 0) | peaks.isnan()


def _sums_by_sample(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return sums and sums of squares of ``(N, C, P)`` by sample, and mean and variance by channel."""

    def of(piece: Tensor) -> tuple[Tensor, Tensor]:
        return piece.sum(2), torch.linalg.vector_norm(piece, dim=2)

    total, norms = _by_pieces(x, of, x)
    total, raw = total.double(), norms.double().square_()
    mean = total.sum(0) / count
    return total, raw, mean, (raw.sum(0) / count - mean * mean).clamp_(min=0)


def _sums(other: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    other = other.to(values.dtype)
    if values.ndim == 2:
        return other.sum(0), (other * other).sum(0), (other * values).sum(0)

    def of(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return one.sum(2), torch.linalg.vector_norm(one, dim=2), row_products(one, two)

    total, norms, product = _by_pieces(other, of, other, values)
    return total.double().sum(0), norms.double().square().sum(0), product.double().sum(0)


def _by_pieces(x: Tensor, act: Callable[..., tuple[Tensor, ...]], *whole: Tensor) -> tuple[Tensor, ...]:
    """Do several reductions by sample on pieces that stay in a processor's cache between them."""
    if x.device.type != "cpu":
        return act(*whole)
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


# NumPy 2 has it as a function of its own, at half the time.
_dots: Callable[[Any, Any], Any] = getattr(np, "vecdot", partial(np.einsum, "...p,...p->..."))


def unit_products(weight: Tensor, gradient: Tensor) -> "Tensor | np.ndarray[Any, np.dtype[Any]]":
    """Return by output unit, ``(3, units)``: the inner product of weight and gradient, and their squared lengths.

    On the host as an array, which costs a part of the calls.
    """
    if weight.is_cpu and gradient.is_cpu:
        w, g = (_plain(part).numpy().reshape(len(part), -1) for part in (weight, gradient))
        return np.array([_dots(w, g), _dots(w, w), _dots(g, g)])
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    u, v = weight.flatten(1).to(wide), gradient.flatten(1).to(wide)
    return torch.stack([torch.linalg.vecdot(a, b) for a, b in ((u, v), (u, u), (v, v))])


def change_products(before: Sequence[Tensor], after: Sequence[Tensor]) -> list[list[float]]:
    """Return of each change the squared length, its inner product with the value before, and that value's square.

    Of tensors that lie on several processes: of the whole ones; then each process must call it with the same tensors.
    """
    own, now = [local(tensor) for tensor in before], [local(tensor) for tensor in after]
    if all(tensor.is_cpu for tensor in own):
        with np.errstate(all="ignore"):
            found = [_change_products(old, new) for old, new in zip(own, now, strict=True)]
    else:
        found = [sums.tolist() for sums in to_host([_products_away(*pair) for pair in zip(own, now, strict=True)])]
    if not any_distributed(before):
        return found
    return [
        list(sums)
        for sums in zip(*(summed_over_shards(part, before) for part in zip(*found, strict=True)), strict=True)
    ]


def _change_products(old: Tensor, new: Tensor) -> list[float]:
    value = _plain(old).numpy().ravel()
    moved = _plain(new).numpy().ravel() - value
    return [float(moved.dot(moved)), float(moved.dot(value)), float(value.dot(value))]


def _products_away(old: Tensor, new: Tensor) -> Tensor:
    wide = torch.float64 if old.dtype == torch.float64 else torch.float32
    value = old.to(wide).reshape(-1)
    moved = new.to(wide).reshape(-1) - value
    return torch.stack([torch.dot(moved, moved), torch.dot(moved, value), torch.dot(value, value)])


def to_host(tensors: Sequence[Tensor]) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    """Bring tensors to the host as float64 arrays of their shapes, in one transfer a device."""
    if all(tensor.is_cpu for tensor in tensors):
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
    """Give a type that NumPy knows, and in which a sum of squares does not overflow."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def to_floats(numbers: Sequence[Tensor | float]) -> list[float]:
    """Return the values of numbers and one-element tensors; of tensors on an accelerator in one transfer a device."""
    away = [isinstance(number, Tensor) and not number.is_cpu for number in numbers]
    if not any(away):
        return [float(number) for number in numbers]
    brought = iter(to_host([number for number, far in zip(numbers, away, strict=True) if far]))  # type: ignore[misc]
    return [float(next(brought) if far else number) for number, far in zip(numbers, away, strict=True)]


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
