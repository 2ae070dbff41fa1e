"""A few training steps of the user's own, watched at every norm."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from normscope._errors import UsageError
from normscope.evidence.case import Case, number_of
from normscope.evidence.listening import Listener, NormCall as NormCall, Training as Training
from normscope.evidence.sandbox import batches, sandbox
from normscope.evidence.step_modes import ModesListener
from normscope.modules.batches import finite, tensors
from normscope.probes import GradientFlow, Recorder, Saturation
from normscope.usercode import users_code


def watch_training(case: Case, steps: int, *, beside: Mapping[str, Module] | None = None) -> Training:
    """Make a few training steps as the user does, look on, and undo them.

    Args:
        case: The set-up.
        steps: How many steps.
        beside: Other modules than the model, by name, whose norms are listened to.

    Raises:
        UsageError: The loader, the loss or the step raises.
    """
    seen, others = Training(), dict(beside or {})
    with sandbox(case):
        parameters = [p for module in (case.model, *others.values()) for p in module.parameters()]
        before = [_sums(parameter) for parameter in parameters]
        _run(case, seen, steps, others)
        seen.moved = {id(p) for p, sums in zip(parameters, before, strict=True) if _sums(p) != sums}
    return seen


def _sums(parameter: Tensor) -> tuple[float, float]:
    """Return two numbers that tell whether a parameter was changed, without a copy of it."""
    if parameter.is_meta or parameter.is_quantized or parameter.layout is not torch.strided:
        return 0.0, 0.0
    values = parameter.detach()
    values = (torch.view_as_real(values) if values.is_complex() else values).double()
    return float(values.sum()), float(values.abs().sum())


def _run(case: Case, seen: Training, steps: int, others: Mapping[str, Module]) -> None:
    losses: list[float] = []

    def loss_fn(model: Any, batch: Any) -> Tensor:
        loss = case.loss_fn(model, batch)
        if isinstance(loss, Tensor) and loss.numel() == 1:
            losses.append(float(loss.detach()))
        return loss

    scope = Recorder(case.model, case.loss_fn, case.optimizer, [GradientFlow(), Saturation()], every=1)
    optimizers = [] if case.optimizer is None else [case.optimizer]
    listener = Listener(case.model, optimizers, seen, beside=others)
    modes = ModesListener(case.model)
    try:
        listener.attach()
        modes.attach()
        for batch in batches(case.loader, steps):
            if seen.batch_broken is None and not finite(tensors(batch)):
                seen.batch_broken = seen.steps
            losses.clear()
            try:
                with users_code(f"training step {seen.steps}"), torch.enable_grad(), scope.step(batch):
                    if case.step is not None:
                        case.step(case.model, batch)
                    else:
                        _plain(case, loss_fn, batch)
            except UsageError as error:
                if not seen.steps:
                    raise
                seen.failed = str(error)
                break
            listener.step_ended(losses[0] if losses else math.nan)
    finally:
        listener.detach()
        modes.detach()
    seen.modes = modes.modes
    seen.updates = seen.updates if case.optimizer is not None else seen.steps
    if case.optimizer is None:
        for call in seen.calls:
            call.update = call.step
    seen.records = scope.drain()


def _plain(case: Case, loss_fn: Any, batch: Any) -> None:
    if case.optimizer is not None:
        case.optimizer.zero_grad()
    else:
        case.model.zero_grad()
    loss = loss_fn(case.model, batch)
    # Without any it is frozen as a whole: passes are made, and statistics move, but nothing is learnt.
    if any(parameter.requires_grad for parameter in case.model.parameters()):
        number_of(loss, case.loss_fn, descended=True).backward()
    if case.optimizer is not None:
        case.optimizer.step()
