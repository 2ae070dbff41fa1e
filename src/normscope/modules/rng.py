"""The random streams that a forward pass may draw from, and how they are set back."""

import random
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import Module

from normscope.modules.tree import walk


class RngState:
    """The state of every random stream that a forward pass may draw from.

    torch's CPU stream, its CUDA streams once CUDA is in use, NumPy's legacy global stream, Python's ``random``, and
    every ``torch.Generator`` that a module of the model holds as an attribute.

    Args:
        model: The model whose generators are looked for.
        generators: Further generators.
    """

    def __init__(self, model: Module | None = None, *, generators: Iterable[Generator] = ()) -> None:
        self.torch = torch_streams()
        self.numpy = np.random.get_state()  # noqa: NPY002  (the global stream itself is what is kept)
        self.python = random.getstate()
        self.generators = [(generator, generator.get_state()) for generator in (*_generators(model), *generators)]

    def restore(self, *, beside_torch: bool = True) -> None:
        """Set every stream back to the state it had; those of NumPy and Python only if asked for."""
        set_torch_streams(self.torch)
        for generator, state in self.generators:
            generator.set_state(state)
        if not beside_torch:
            return
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)

    def drawn_beside_torch(self) -> bool:
        """Whether NumPy's or Python's stream has moved on since."""
        now = repr_state(np.random.get_state())  # noqa: NPY002
        return now != repr_state(self.numpy) or random.getstate() != self.python

    def differences(self, other: "RngState") -> list[str]:
        """Name the streams whose states differ between ``self`` and ``other``."""
        found = [] if torch.equal(self.torch[0], other.torch[0]) else ["torch's CPU stream"]
        if not all(map(torch.equal, self.torch[1:], other.torch[1:])):
            found.append("a CUDA stream")
        if repr_state(self.numpy) != repr_state(other.numpy):
            found.append("NumPy's stream")
        if self.python != other.python:
            found.append("Python's stream")
        pairs = zip(self.generators, other.generators, strict=False)
        return found + ["a generator"] * any(not torch.equal(before, after) for (_, before), (_, after) in pairs)


def torch_streams() -> list[Tensor]:
    """Return the states of torch's own streams alone: the CPU's, and each CUDA device's once CUDA is in use."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else ())]


def set_torch_streams(states: list[Tensor]) -> None:
    """Set torch's own streams to the states that ``torch_streams`` has returned."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


@contextmanager
def torch_streams_kept() -> Iterator[None]:
    """Set torch's own streams back to their states of now when the block ends."""
    states = torch_streams()
    try:
        yield
    finally:
        set_torch_streams(states)


def streams_kept(wanted: bool = True) -> AbstractContextManager[None]:
    """Set torch's, NumPy's and Python's own streams back to their states of now when the block ends.

    Args:
        wanted: False does nothing: to have NumPy's state and to set it takes .1 ms.
    """
    return _streams_kept() if wanted else nullcontext()


@contextmanager
def _streams_kept() -> Iterator[None]:
    state = RngState()
    try:
        yield
    finally:
        state.restore()


def repr_state(state: Any) -> tuple[Any, ...]:
    """Return NumPy's stream state in a form that compares by value."""
    return tuple(part.tobytes() if isinstance(part, np.ndarray) else part for part in state)


def _generators(model: Module | None) -> Iterator[Generator]:
    for _, module in walk(model) if model is not None else ():
        for value in vars(module).values():
            if type(value) is Generator:  # isinstance asks a metaclass, in Python, a thousand times a step
                yield value


def seed_streams(*seeds: int) -> None:
    """Set torch's, NumPy's and Python's own streams to a state that these numbers alone determine."""
    words = np.random.SeedSequence(seeds).generate_state(2)
    torch.manual_seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002  (the global stream itself is what user code draws from)
    random.seed(int(words[0]))
