"""How many bytes of tensors a piece of work holds at its peak."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class _Held(TorchDispatchMode):  # type: ignore[misc, unused-ignore]
    """Counts the storages that operations make, and that are still alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.now = self.peak = 0
        self._alive: dict[int, weakref.finalize[Any, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_storage(part) for part in pytree.tree_leaves((args, kwargs)) if isinstance(part, Tensor)}
        made = func(*args, **(kwargs or {}))
        for part in pytree.tree_leaves(made):
            if isinstance(part, Tensor) and part.layout == torch.strided and _storage(part) not in before:
                self._count(part)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _storage(tensor)
        if key in self._alive:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self._alive[key] = weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.now -= size
        self._alive.pop(key, None)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else 0


def peak_bytes(act: Callable[[], None]) -> int:
    """Run ``act``, and return the most bytes that the tensors it made held together.

    Arithmetic inside a single operation, and arrays that are no tensors, are not seen.
    """
    held = _Held()
    with held:
        act()
    return held.peak
