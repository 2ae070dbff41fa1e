"""Objects by what a snapshot can do with them: look inside, leave alone, or refuse."""

import argparse
import collections
import io
import queue
import sys
import threading
import types
from functools import lru_cache
from typing import Any

from torch.nn import Module
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, Sampler

# Classes of the standard library whose objects are no more than a place for attributes.
_HOLDERS = (types.SimpleNamespace, argparse.Namespace, collections.UserDict, collections.UserList)
# What runs a training, writes its log or talks to other processes: it is not the loss's to change, it is large, and it
# may change in another thread while a pass runs, which putting back would undo.
_MACHINERY = {
    *("accelerate", "comet_ml", "datasets", "deepspeed", "ignite", "lightning", "lightning_fabric", "mlflow"),
    *("neptune", "pytorch_lightning", "ray", "rich", "tensorboard", "tensorboardX", "tqdm", "wandb"),
    *("normscope", "numpy", "polars", "pandas", "transformers"),
}
_TORCHS_OWN = (
    *("_C", "_dynamo", "_inductor", "_ops", "autograd", "cuda", "distributed", "fx", "jit", "multiprocessing"),
    *("profiler", "utils.data", "utils.hooks", "utils.tensorboard"),
)
_DATA = (DataLoader, Dataset, Sampler)
_IN_OTHER_THREADS = (threading.Thread, queue.Queue, queue.SimpleQueue)


@lru_cache(maxsize=4096)
def _is_outside(cls: type) -> bool:
    """Whether objects of a class are not a loss's to change, or nothing that attributes could tell."""
    top, *inner = cls.__module__.split(".")
    if issubclass(cls, (Module, Optimizer)):
        return False
    if issubclass(cls, (*_DATA, io.IOBase, *_IN_OTHER_THREADS)) or top in _MACHINERY:
        return True
    if top == "torch":
        return ".".join(inner).startswith(_TORCHS_OWN)
    return top in sys.stdlib_module_names and top != "__main__" and not issubclass(cls, _HOLDERS)


def is_outside(value: Any) -> bool:
    """Whether an object stands for data, a thread, a log or another process, and is left alone."""
    if _is_outside(type(value)):  # type: ignore[arg-type]
        return True
    return any(isinstance(held, _IN_OTHER_THREADS) for held in getattr(value, "__dict__", {}).values())


@lru_cache(maxsize=4096)
def slots_of(cls: type) -> tuple[str, ...]:
    """Return the attributes of a class that are in no dictionary."""
    found: list[str] = []
    for kind in cls.__mro__:
        own = vars(kind).get("__slots__", ())
        found += [own] if isinstance(own, str) else list(own)
    return tuple(name for name in found if name not in ("__dict__", "__weakref__"))


def is_read_once(value: Any) -> bool:
    """Whether an object is an iterator that shows no attributes, so that what was taken from it cannot be put back."""
    kind = type(value)
    if not hasattr(kind, "__next__") or issubclass(kind, io.IOBase):
        return False
    return kind.__module__.startswith("torch.utils.data") or not hasattr(value, "__dict__")
