"""Models in wrappers: compiled, and replicated over processes."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import DataParallel, Module
from torch.nn.parallel import DistributedDataParallel

from normscope.modules.tree import walk


def unwrap(model: Module) -> Module:
    """Return the model inside ``torch.compile`` and data-parallel wrappers."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif "_orig_mod" in model._modules:  # torch.compile's wrapper
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return model


def is_compiled(model: Module) -> bool:
    """Whether the model or a module of it runs compiled."""
    return any(runs_compiled(vars(module)) for _, module in walk(model))


def runs_compiled(attributes: dict[str, Any]) -> bool:
    """Whether the object with these attributes is a module that runs compiled itself."""
    return (
        "_orig_mod" in attributes.get("_modules", ())
        or attributes.get("_compiled_call_impl") is not None
        or hasattr(attributes.get("forward"), "_torchdynamo_orig_callable")
    )


def calls_eagerly(model: Module) -> bool:
    """Whether hooks of the outermost module itself stay outside what is compiled."""
    return getattr(model, "_compiled_call_impl", None) is None


def eagerly(compiled: bool) -> AbstractContextManager[Any]:
    """Return a context in which compiled modules run as they are written; nothing is compiled anew."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def rank_of_many() -> int | None:
    """Return this process's rank if it is one of several that train together, else None."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() < 2:
        return None
    return distributed.get_rank()


def world_size() -> int | None:
    """Return how many processes train together; None if this one trains alone."""
    return None if rank_of_many() is None else torch.distributed.get_world_size()
