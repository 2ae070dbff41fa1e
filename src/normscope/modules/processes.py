"""Processes whose passes must keep in step, since the model exchanges values in them."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, SyncBatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from normscope._errors import Interruption, UsageError
from normscope.modules.wrapped import rank_of_many

PATIENCE = timedelta(minutes=2)
"""How long a process waits for what the others say."""

_PASS, _END, _FAILED = 1, 2, 3


class OutOfStepError(RuntimeError):
    """Another process has failed, or takes another number of passes: none of them goes on with what they did."""


class BrokenPassError(Interruption):
    """This process has failed in the middle of a pass in which others wait for its values.

    No exception, and no probe's failure: what this process sends next would be taken for those values.
    """


class Processes:
    """Lets processes take the same passes at the same time, or stop together.

    Before each pass every process says what it is about to do. If they do not all say the same, all raise
    ``OutOfStepError``: so none waits in a pass for one that has failed or is done. What they say goes over a process
    group of its own, which waits two minutes at most. Then a process that has failed in the middle of a pass, in which
    others wait for its values, ends by ``BrokenPassError``, and they with it, as after any error of a single process.

    Every process must make its ``Processes`` at the same step.

    Args:
        group: The processes over which the model exchanges values; None for all.
    """

    def __init__(self, group: Any = None) -> None:
        self._group = group
        self._words = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)

    def begin_pass(self) -> None:
        """Say that this process is about to run a pass.

        Raises:
            OutOfStepError: Another process says something else.
        """
        self._say(_PASS)

    def end(self) -> None:
        """Say that this process is done.

        Raises:
            OutOfStepError: Another process says something else.
        """
        self._say(_END)

    def fail(self) -> None:
        """Say that this process has failed.

        Raises:
            BrokenPassError: The others do not answer: they wait in the pass in which this process has failed.
        """
        try:
            self._say(_FAILED)
        except OutOfStepError as error:
            raise BrokenPassError(
                "a probe has failed in this process in the middle of a pass, and the other processes wait for its "
                "values: training cannot go on in step"
            ) from error

    def _say(self, word: int) -> None:
        said = torch.tensor([word, -word])
        try:
            torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX, group=self._words)
        except RuntimeError as error:
            raise OutOfStepError(
                f"no answer from the other processes in {PATIENCE.seconds} s: one of them has failed in the middle of "
                "a pass, or has no scope with the same probes"
            ) from error
        most, least = int(said[0]), -int(said[1])
        if most == _FAILED and word != _FAILED:
            raise OutOfStepError("the same probe has failed in another process")
        if most != least and word != _FAILED:
            raise OutOfStepError("the processes need different numbers of passes, which the model allows only together")

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Return which of the flags are set in any process; each must give the same number of flags."""
        told = torch.tensor(flags, dtype=torch.int32)
        if len(flags):
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX, group=self._words)
        return [bool(flag) for flag in told.tolist()]

    def decide(self, stop: bool) -> bool:
        """Return whether any process wants to stop."""
        return self.any_of([stop])[0]

    def mean(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """Return the means over the processes between which the model exchanges values; the same bits in each."""
        found = []
        for tensor in tensors:
            total = tensor.detach().clone()
            torch.distributed.all_reduce(total, group=self._group)
            found.append(total / torch.distributed.get_world_size(self._group))
        return found


class _RefusingExchanges(TorchDispatchMode):
    """Raises before any operation by which processes exchange values, whatever function of torch has led to it."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation.namespace in ("c10d", "_c10d_functional"):
            raise UsageError(
                f"loss_fn exchanges values with other processes ({operation.__name__.partition('.')[0].strip('_')}), "
                "and would wait for them wherever it is evaluated again: give a loss_fn of this process's own batch"
            )
        return operation(*args, **(kwargs or {}))


def refusing_exchanges() -> AbstractContextManager[Any]:
    """Return a context in which no value may be sent to other processes.

    Every operation takes longer in it.

    Raises:
        UsageError: In the block, before anything is sent.
    """
    return nullcontext() if rank_of_many() is None else _RefusingExchanges()


def exchanging(modules: Iterable[tuple[Module, bool]]) -> list[Any]:
    """Return the process groups over which norms exchange statistics, each once; None stands for all processes.

    Args:
        modules: The modules of a model, each with whether it is in train mode.
    """
    if rank_of_many() is None:
        return []
    found: list[Any] = []
    for module, training in modules:
        if training and synchronises(module):
            group = getattr(module, "process_group", None)
            if not any(group is known for known in found):
                found.append(group)
    return found


def synchronises(module: Module) -> bool:
    """Whether a norm in train mode exchanges its statistics with other processes."""
    own = getattr(module, "statistics", "")
    return (
        isinstance(module, SyncBatchNorm)
        or own == "sync"
        or (isinstance(own, str) and own != "" and getattr(module, "process_group", None) is not None)
    )
