"""The losses that a training loop sends back."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Reader = Callable[[Tensor], None]

_readers: list[Reader] = []
_wrapped: dict[str, Any] = {"original": None}


class BackwardHandle:
    """Ends the listening when removed."""

    def __init__(self, read: Reader) -> None:
        self._read: Reader | None = read

    def remove(self) -> None:
        """Stop calling the reader; with the last reader gone, ``torch.autograd.backward`` is torch's own again."""
        if self._read is None:
            return
        _readers.remove(self._read)
        self._read = None
        # Where somebody else has put a function over ours since, ours stays below it and only passes calls on.
        if not _readers and torch.autograd.backward is _listening:
            torch.autograd.backward, _wrapped["original"] = _wrapped["original"], None


def on_backward(read: Reader) -> BackwardHandle:
    """Call ``read(loss)`` with every scalar, detached, on which ``backward()`` is called, before the pass runs.

    ``Tensor.backward`` and ``torch.autograd.backward`` are heard, also through a gradient scaler (whose scale the value
    then has) and a trainer; tensors with a gradient of their own (``backward(gradient)``) are no losses.

    Args:
        read: Must not raise, and change nothing.

    Returns:
        A handle: its ``remove()`` ends it.
    """
    if _wrapped["original"] is None:
        _wrapped["original"] = torch.autograd.backward
        torch.autograd.backward = _listening
    _readers.append(read)
    return BackwardHandle(read)


def _listening(tensors: Any, grad_tensors: Any = None, *args: Any, **kwargs: Any) -> Any:
    if grad_tensors is None:
        for tensor in [tensors] if isinstance(tensors, Tensor) else list(tensors):
            if isinstance(tensor, Tensor) and tensor.numel() == 1:
                for read in tuple(_readers):
                    read(tensor.detach())
    return _wrapped["original"](tensors, grad_tensors, *args, **kwargs)
