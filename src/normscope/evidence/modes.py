"""Which modules compute something else in eval mode, beside batch norms and noise; and what an evaluation writes."""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from normscope.evidence.calls import copied
from normscope.evidence.case import Case
from normscope.evidence.losses import losses
from normscope.evidence.noise import noisy_modules, quiet
from normscope.evidence.pooling import Statistics, put_statistics
from normscope.evidence.sandbox import batches, sandbox
from normscope.modules.batches import tensors
from normscope.modules.call import set_mode
from normscope.modules.rng import streams_kept
from normscope.modules.sites import tracking
from normscope.modules.state import traceless
from normscope.modules.tree import walk
from normscope.modules.values import same_bits
from normscope.usercode import users_code

_CHANGE = 1e-3  # of the root mean square of an output: torch's fast paths in eval mode stay well below
_SETTLING, _DIFFERENT = 50, 10  # passes, after which 0.5 % of an average of momentum 0.1 are old, and their batches
_EXACT = 1e-6  # of a loss that is computed again from the same values


@dataclass(frozen=True, slots=True)
class ByMode:
    """A module whose own code computes something else in eval mode, from the same inputs and values.

    Attributes:
        path: Qualified name.
        module: The module.
        change: Largest change of its output, over the output's root mean square; infinite if it returns something else.
        buffers: Floating-point buffers of its own.
        unwritten: Those of them that no pass in train mode writes.
    """

    path: str
    module: Module
    change: float
    buffers: tuple[str, ...]
    unwritten: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """What evaluation writes.

    Attributes:
        change: By how much the loss of a batch changes through that, over the loss, where it changes most.
        before: That loss.
        after: The loss of the same batch after all were evaluated.
        buffers: By module the names of its buffers that moved.
    """

    change: float = 0.0
    before: float = math.nan
    after: float = math.nan
    buffers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def modules_by_mode(case: Case, statistics: Statistics | None) -> list[ByMode]:
    """Return the modules whose output depends on their own mode, with noise off and batch norms held fixed.

    In a pass over the first batch each module that is in train mode is called twice more by itself, with its own flag
    alone in train and in eval mode.

    Args:
        case: The set-up; left as it was.
        statistics: Of the training data, for the norms that keep running statistics.

    Raises:
        UsageError: The loader or the loss raises.
    """
    found: dict[str, tuple[Module, float]] = {}
    nested: list[str] = []
    with sandbox(case):
        noise = noisy_modules(case)
        (batch,) = batches(case.loader, 1)
        before = dict(case.model.named_buffers())
        before = {name: buffer.detach().clone() for name, buffer in before.items()}
        with traceless(case.model), users_code("the loss of batch 0 of the loader"):
            case.loss_of(case.model, batch)
            written = {name for name, now in case.model.named_buffers() if not _unmoved(before.get(name), now)}
        if statistics is not None and tracking(case.model):
            put_statistics(case.model, statistics)
        for module in tracking(case.model).values():
            module.training = False

        def look(path: str, module: Module, args: Any, kwargs: Any) -> None:
            if nested or path in found or not module.training:
                return
            nested.append(path)
            try:
                change = _change(module, args, kwargs)
            finally:
                nested.clear()
            if change > _CHANGE:
                found[path] = module, change

        with quiet(noise), ExitStack() as hooks:
            for path, module in walk(case.model):

                def hook(module: Module, args: Any, kwargs: Any, path: str = path) -> None:
                    look(path, module, args, kwargs)

                hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            with users_code("the loss of batch 0 of the loader"):
                case.loss_of(case.model, batch)
    return [_by_mode(path, module, change, written) for path, (module, change) in found.items()]


def settled_loss(case: Case, statistics: Statistics | None, count: int) -> float:
    """Return the training loss in eval mode after passes in train mode that change buffers and no weights.

    By then running statistics of the user's own classes have followed the weights, if anything writes them.

    Args:
        case: The set-up; left as it was.
        statistics: Of the training data, for the norms that keep running statistics.
        count: Batches over which the loss is taken.

    Raises:
        UsageError: The loader or the loss raises.
    """
    with sandbox(case):
        noise = noisy_modules(case)
        several = list(batches(case.loader, _DIFFERENT))
        if statistics is not None and tracking(case.model):
            put_statistics(case.model, statistics)
        for module in tracking(case.model).values():
            module.training = False
        with quiet(noise):
            for index in range(_SETTLING):
                with users_code(f"the loss of batch {index % len(several)} of the loader"):
                    case.loss_of(case.model, several[index % len(several)])
        set_mode(case.model, False)
        found = losses(case, several[:count], count, evaluation=True, what="loader")
    return sum(found) / len(found)


def written_in_evaluation(case: Case, count: int) -> Written:
    """Return whether evaluating some batches changes the loss of one of them, through buffers that it writes.

    The first batch is evaluated once before, since caches are made at first use. A loss that is not the same again
    when the buffers are put back depends on something else, such as a state that is carried from batch to batch: of
    that nothing is said.

    Args:
        case: The set-up; left as it was.
        count: Number of batches.

    Raises:
        UsageError: The loader or the loss raises.
    """
    loader, what = (case.loader, "loader") if case.eval_loader is None else (case.eval_loader, "eval_loader")
    with sandbox(case):
        several = list(batches(loader, count, what=what))
        set_mode(case.model, False)

        def loss_of(batch: Any) -> float:
            with users_code(f"the loss of a batch of the {what}"), streams_kept():
                return case.loss_of(case.model, batch, evaluation=True)

        loss_of(several[0])
        owners = {id(buffer): (path, name) for path, module in walk(case.model) for name, buffer in _buffers(module)}
        kept = [(buffer, buffer.detach().clone()) for buffer in case.model.buffers()]

        def losses_from(values: list[tuple[Tensor, Tensor]]) -> list[float]:
            found = []
            for batch in several:
                _put(values)
                found.append(loss_of(batch))
            return found

        for batch in several:
            loss_of(batch)
        moved = [buffer for buffer, old in kept if buffer.is_floating_point() and not same_bits(buffer, old)]
        if not moved:
            return Written()
        now = [(buffer, buffer.detach().clone()) for buffer, _ in kept]
        before, after, again = losses_from(kept), losses_from(now), losses_from(kept)
    if not all(abs(b - a) <= _EXACT * abs(a) for a, b in zip(before, again, strict=True)):
        return Written()
    buffers: dict[str, tuple[str, ...]] = {}
    for path, name in (owners[id(buffer)] for buffer in moved):
        buffers[path] = (*buffers.get(path, ()), name)
    changes = [abs(b - a) / max(abs(a), 1e-12) for a, b in zip(before, after, strict=True)]
    most = max(range(len(changes)), key=changes.__getitem__)
    return Written(changes[most], before[most], after[most], buffers)


def _put(values: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, value in values:
        buffer.data.copy_(value)


def _buffers(module: Module) -> list[tuple[str, Tensor]]:
    return [(name, buffer) for name, buffer in module._buffers.items() if buffer is not None]


def _unmoved(then: Tensor | None, now: Tensor) -> bool:
    return then is not None and same_bits(then, now)


def _by_mode(path: str, module: Module, change: float, written: set[str]) -> ByMode:
    own = tuple(name for name, buffer in _buffers(module) if buffer.is_floating_point())
    unwritten = tuple(name for name in own if f"{path}.{name}".strip(".") not in written)
    return ByMode(path, module, change, own, unwritten)


def _change(module: Module, args: Any, kwargs: Any) -> float:
    """Return by how much the output of a module changes with its own flag; 0 where it cannot be called by itself."""
    made: list[list[Tensor]] = []
    try:
        for training in (True, False):
            with traceless(module), torch.no_grad():
                module.training = training
                made.append([t.detach().double() for t in tensors(module.forward(*copied(args), **copied(kwargs)))])
    except Exception:
        return 0.0
    if [t.shape for t in made[0]] != [t.shape for t in made[1]]:
        return math.inf
    found = 0.0
    for one, other in zip(*made, strict=True):
        scale = float(one.square().mean().sqrt()) if one.numel() else 0.0
        difference = float((one - other).abs().max()) if one.numel() else 0.0
        found = max(found, difference / scale if scale else math.inf if difference else 0.0)
    return found
