"""The losses that a training loop sends back."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

Reader = Callable[[Tensor], None]

_readers: list[Reader] = []


class Removable(Protocol):
    """Ends a hook."""

    def remove(self) -> None:
        """Take the hook away."""


class _Listening:
    """Takes the place of ``torch.autograd.backward``, and calls the readers before it."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original

    def __call__(self, tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
        # A function of somebody else's over ours may have kept ours there after its end: then it only passes calls on.
        if _outermost[-1:] == [self] and grad_tensors is None:
            for tensor in [tensors] if isinstance(tensors, Tensor) else list(tensors):
                if isinstance(tensor, Tensor) and tensor.numel() == 1:
                    for read in tuple(_readers):
                        read(tensor.detach())
        return self.original(tensors, grad_tensors, *args, **kwargs)


_outermost: list[_Listening] = []  # the function that calls the readers; none while nobody listens


class BackwardHandle:
    """Ends the listening when removed."""

    def __init__(self, read: Reader) -> None:
        self._read: Reader | None = read

    def remove(self) -> None:
        """Stop calling the reader; with the last reader gone, ``torch.autograd.backward`` is what it was."""
        if self._read is None:
            return
        _readers.remove(self._read)
        self._read = None
        if not _readers:
            listening = _outermost.pop()
            if torch.autograd.backward is listening:
                torch.autograd.backward = listening.original


def on_backward(read: Reader) -> BackwardHandle:
    """Call ``read(loss)`` with every scalar, detached, on which ``backward()`` is called, before the pass runs.

    ``Tensor.backward`` and ``torch.autograd.backward`` are heard, also through a gradient scaler (whose scale the value
    then has) and a trainer; tensors with a gradient of their own (``backward(gradient)``) are no losses.

    Args:
        read: Must not raise, and change nothing.

    Returns:
        A handle: its ``remove()`` ends it.
    """
    if not _readers:
        listening = _Listening(torch.autograd.backward)
        _outermost[:] = [listening]
        torch.autograd.backward = listening
    _readers.append(read)
    return BackwardHandle(read)
