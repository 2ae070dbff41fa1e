"""State beside tensors and containers: arrays, random streams, and marks of what cannot be copied."""

import operator
import random
import zlib
from itertools import count
from types import GeneratorType
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from normscope.modules.rng import repr_state

_READ = 1024  # numbers of a large tensor or array that are read where not all are
_PRIME = 1_000_003  # a step from begin to begin that meets all places in turn


class Kept(Protocol):
    """Something that is kept, compared and put back by itself."""

    name: str

    def is_as_it_was(self) -> bool:
        """Whether it is what was kept."""

    def restore(self) -> None:
        """Put it back."""


def kept_beside(name: str, value: Any) -> Kept | None:
    """Keep an array or a random stream; None if the value is neither, or cannot be written."""
    if isinstance(value, np.ndarray):
        return _Array(name, value) if value.flags.writeable else None
    return _Stream(name, value) if isinstance(value, _STREAMS) else None


class _Array:
    """A NumPy array, in the memory that it has."""

    __slots__ = ("_array", "_copy", "name")

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self._array, self._copy = name, array, array.copy()

    def is_as_it_was(self) -> bool:
        now, kept = self._array, self._copy
        if now.shape != kept.shape or now.dtype != kept.dtype:
            return False
        if now.dtype.hasobject:
            return all(a is b for a, b in zip(now.flat, kept.flat, strict=True))
        return now.tobytes() == kept.tobytes()

    def restore(self) -> None:
        if self._array.shape != self._copy.shape:
            self._array.resize(self._copy.shape, refcheck=False)
        self._array[...] = self._copy


_STREAMS = (np.random.Generator, np.random.RandomState, np.random.BitGenerator, random.Random, torch.Generator)


class _Stream:
    """A random stream that is not one of the process's own."""

    __slots__ = ("_state", "_stream", "name")

    def __init__(self, name: str, stream: Any) -> None:
        self.name, self._stream, self._state = name, stream, self._now(stream)

    @staticmethod
    def _now(stream: Any) -> Any:
        if isinstance(stream, random.Random):
            return stream.getstate()
        if isinstance(stream, (np.random.RandomState, torch.Generator)):
            return stream.get_state()
        return getattr(stream, "bit_generator", stream).state

    def is_as_it_was(self) -> bool:
        now, kept = self._now(self._stream), self._state
        if isinstance(now, Tensor):
            return torch.equal(now, kept)
        return repr_state(now) == repr_state(kept) if isinstance(now, tuple) else repr(now) == repr(kept)

    def restore(self) -> None:
        stream = self._stream
        if isinstance(stream, random.Random):
            stream.setstate(self._state)
        elif isinstance(stream, (np.random.RandomState, torch.Generator)):
            stream.set_state(self._state)
        else:
            getattr(stream, "bit_generator", stream).state = self._state


class Mark:
    """What shows that something was changed of which no copy is kept: too large a tensor, an object of another world.

    Args:
        name: How messages call it.
        value: The tensor, array or object.
        thorough: Whether the whole memory of a tensor or array is read, which sees also what is written past the
            version counter, by ``.data`` say. Else numbers at even distances are read, at other places in every mark,
            so that what is written again and again is seen sooner or later.
    """

    __slots__ = ("_begin", "_mark", "_thorough", "_value", "name")
    _turns: ClassVar["count[int]"] = count()

    def __init__(self, name: str, value: Any, *, thorough: bool = False) -> None:
        self.name, self._value, self._thorough = name, value, thorough
        self._begin = next(self._turns) * _PRIME
        self._mark = self._now()

    def _now(self) -> Any:
        value = self._value
        if isinstance(value, Tensor):
            version = 0 if value.is_inference() else value._version
            words = _words(value)
            return version, value.shape, None if words is None else int(words[self._places(len(words))].sum())
        if isinstance(value, np.ndarray):
            return value.shape, zlib.crc32(value.flat[self._places(value.size)].tobytes())
        if isinstance(value, GeneratorType):
            frame = value.gi_frame
            return None if frame is None else (frame.f_lasti, {key: id(held) for key, held in frame.f_locals.items()})
        try:  # what is left of an iterator, or the length
            return getattr(value, "_num_yielded", None), operator.length_hint(value)
        except Exception:  # an object that cannot be asked now shows nothing
            return None

    def _places(self, size: int) -> slice:
        stride = 1 if self._thorough else max(1, size // _READ)
        return slice(self._begin % stride, None, stride)

    def moved(self) -> bool:
        """Whether the thing was changed."""
        return self._now() != self._mark


def _words(tensor: Tensor) -> Tensor | None:
    """Return the bits of a tensor as whole numbers; None if they do not lie row by row."""
    plain = tensor.detach()
    if plain.layout != torch.strided or plain.is_meta or plain.element_size() > 8 or not plain.is_contiguous():
        return None
    return plain.reshape(-1).view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[plain.element_size()])
