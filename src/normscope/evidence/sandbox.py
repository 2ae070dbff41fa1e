"""Do as the user's loop does, and leave nothing of it behind."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from normscope._errors import UsageError
from normscope.evidence.case import Case
from normscope.modules.wrapped import eagerly, is_compiled
from normscope.probes import Snapshot
from normscope.usercode import users_code


class _OptimizerState:
    """Everything that an optimizer keeps: its groups, and its state with the values of the tensors in it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._attributes = dict(vars(optimizer))
        self._groups = [(group, dict(group), list(group["params"])) for group in optimizer.param_groups]
        self._group_list = list(optimizer.param_groups)
        self._state = {key: dict(value) for key, value in optimizer.state.items() if isinstance(value, dict)}
        self._tensors = [
            (tensor, tensor.detach().clone())
            for values in self._state.values()
            for tensor in values.values()
            if isinstance(tensor, Tensor)
        ]

    @torch.no_grad()
    def restore(self) -> None:
        optimizer = self._optimizer
        vars(optimizer).clear()
        vars(optimizer).update(self._attributes)
        optimizer.param_groups[:] = self._group_list
        for group, kept, parameters in self._groups:
            group.clear()
            group.update(kept)
            group["params"][:] = parameters
        for key in [key for key in optimizer.state if key not in self._state]:
            del optimizer.state[key]
        for key, kept in self._state.items():
            optimizer.state[key].clear()
            optimizer.state[key].update(kept)
        for tensor, value in self._tensors:
            tensor.data.copy_(value)


@contextmanager
def sandbox(case: Case) -> Iterator[None]:
    """Undo at the end, however it ends, whatever happens to models, optimizer, loaders' streams and random streams.

    Raises:
        UsageError: A parameter lies on the meta device, and so has no value, or is lazy, and so has no shape.
    """
    models = [model for model in (case.model, case.averaged) if model is not None]
    for model in models:
        named = [*model.named_parameters(), *model.named_buffers()]
        lazy = next((name for name, tensor in named if is_lazy(tensor)), None)
        if lazy is not None:
            raise UsageError(f"{lazy} has no shape yet: run a batch through the lazy model first")
        away = next((name for name, tensor in named if tensor.device.type == "meta"), None)
        if away is not None:
            raise UsageError(f"{away} lies on the meta device and has no value: materialise the model first")
    snapshots = [Snapshot(model) for model in models]
    optimizer = _OptimizerState(case.optimizer) if case.optimizer is not None else None
    streams = [(stream, stream.get_state()) for stream in _streams(case)]
    threads, anomaly = torch.is_grad_enabled(), torch.is_anomaly_enabled()
    try:
        # Hooks would have compiled modules compiled anew, and not be called by those that are not.
        with eagerly(any(map(is_compiled, models))):
            yield
    finally:
        with ExitStack() as stack:  # each part is put back even if another one cannot be
            for snapshot in snapshots:
                stack.callback(snapshot.restore)
            if optimizer is not None:
                stack.callback(optimizer.restore)
            for stream, state in streams:
                stack.callback(stream.set_state, state)
            stack.callback(torch.set_grad_enabled, threads)
            stack.callback(torch.autograd.set_detect_anomaly, anomaly)


def _streams(case: Case) -> Iterator[Generator]:
    """Find the random streams that the loaders draw from, besides torch's own."""
    seen: set[int] = set()
    for loader in (case.loader, case.eval_loader):
        sampler = getattr(loader, "sampler", None)
        batch_sampler = getattr(loader, "batch_sampler", None)
        for holder in (loader, sampler, batch_sampler, getattr(batch_sampler, "sampler", None)):
            stream = getattr(holder, "generator", None)
            if isinstance(stream, Generator) and id(stream) not in seen:
                seen.add(id(stream))
                yield stream


def batches(loader: Any, most: int, *, what: str = "loader") -> Iterator[Any]:
    """Yield the first batches of a loader.

    Raises:
        UsageError: It gives none, or an empty one, or raises.
    """
    count = 0
    with users_code(f"iterating the {what}"):
        found = iter(loader)
    while count < most:
        with users_code(f"getting batch {count} of the {what}"):
            batch = next(found, _END)
        if batch is _END:
            break
        tensors = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
        if tensors and not any(tensor.numel() for tensor in tensors):
            raise UsageError(f"batch {count} of the {what} is empty: all of its tensors have no elements")
        yield batch
        count += 1
    if not count:
        raise UsageError(
            f"the {what} gives no batch, or gave all to an earlier pass: it must begin anew each time it is iterated, "
            "as a list or a DataLoader does"
        )


_END = object()
