"""Whether what a scope was given fits what the training loop does, proven at the first due step."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.utils.hooks import RemovableHandle

from normscope.modules.hooks import Hook
from normscope.modules.tree import walk
from normscope.probes._vectors import Vector

_APART = 0.05  # relative distance of gradients: above any rounding of float32 and of mixed precision, below any mistake
_SCALED = 0.01  # distance left when one gradient is scaled to fit the other


class Wiring:
    """Listens to one step: whether the model ran, and whether a gradient came back to its parameters.

    Args:
        model: The model without its wrappers.
        compiled: Whether it runs compiled: then its calls cannot be heard.
        scale: Loss scale of the user's backward pass.

    Attributes:
        compares: Whether gradients are kept, to be compared with that of ``loss_fn``.
    """

    def __init__(self, model: Module, compiled: bool, scale: float = 1.0) -> None:
        self._model, self._compiled, self._scale = model, compiled, scale
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._before = [_seen(parameter) for parameter in self._parameters]
        self.compares = False
        self._ran = compiled
        self._received = False
        self._first: dict[int, Tensor] = {}
        self._updates: dict[int, Tensor] = {}

    def attach(self, keep: Callable[[RemovableHandle], None]) -> None:
        """Set the hooks; ``keep`` must remove them when the step ends."""
        if self._compiled:
            return
        for _, module in walk(self._model):
            keep(module.register_forward_pre_hook(Hook(self.ran)))
        for parameter in self._parameters:
            keep(parameter.register_hook(partial(self._came_back, id(parameter))))

    def ran(self, *_: Any) -> None:
        """Note that a module of the model was called."""
        self._ran = True

    def _came_back(self, key: int, gradient: Tensor) -> None:
        self._received = True
        if self.compares and key not in self._first:
            self._first[key] = gradient.detach() * (1 / self._scale)

    def note_update(self, gradients: Mapping[int, Tensor]) -> None:
        """Note the gradients by which an optimizer is about to update, keyed by ``id`` of the parameter."""
        self.look()
        if self.compares:
            self._updates |= {key: gradient.clone() for key, gradient in gradients.items() if key not in self._updates}

    def look(self) -> None:
        """Note whether gradients have changed since the step began: before an update, and as the step ends."""
        if not self._received:
            now = map(_seen, self._parameters)
            self._received = any(a != b for a, b in zip(self._before, now, strict=True) if b is not None)

    def causes(self, optimizers: Sequence[Any]) -> list[str]:
        """Say what does not fit, in words; empty if all does."""
        self.look()
        own = {id(parameter) for parameter in self._model.parameters()}
        held = {
            id(parameter)
            for optimizer in optimizers
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        found = []
        name = type(self._model).__name__
        if not self._ran:
            found.append(f"the model ({name}) did not run in this step: give the scope the model that the loop calls")
        elif not self._parameters:
            return []
        elif not self._received:
            found.append(f"no backward pass came back to the parameters of the model ({name})")
        if optimizers and own and not own & held:
            found.append(f"the optimizer holds no parameter of the model ({name}): give the optimizer that updates it")
        return found

    def gradients_apart(self, users: Vector, gather: Callable[[Mapping[int, Tensor]], Vector], loss_fns: Vector) -> str:
        """Say how the gradient of the loop differs from that of ``loss_fn``; empty if they agree.

        The loop may send further gradients to the parameters that no update uses, as a generator's loss does to the
        critic, or may evaluate its loss several times in an update: so it is enough if the gradient of the update, or
        the first that came back, agrees.

        Args:
            users: The sum of the gradients that the user's backward passes sent to the parameters, in flat buffers.
            gather: Lays gradients keyed by ``id`` of the parameter out in such buffers.
            loss_fns: The gradient of ``loss_fn`` at the batch of the step, likewise.
        """
        said = gradients_apart(users, loss_fns)
        if said and self._first and not gradients_apart(gather(self._first), loss_fns):
            return ""
        # Clipping has made the gradient of the update shorter.
        if said and self._updates and not gradients_apart(gather(self._updates), loss_fns, shorter=True):
            return ""
        return said


def gradients_apart(users: Vector, loss_fns: Vector, *, shorter: bool = False) -> str:
    """Say how two gradients differ; empty if they agree.

    Args:
        users: The gradient of the loop, in flat buffers.
        loss_fns: The gradient of ``loss_fn``, likewise.
        shorter: Whether the first may be shorter than the second.
    """
    a, b = _flat(users), _flat(loss_fns)
    size, other = float(a.norm()), float(b.norm())
    if not (math.isfinite(size) and math.isfinite(other)) or size == other == 0.0:
        return ""
    distance = float((a - b).norm()) / max(size, other)
    if distance <= _APART:
        return ""
    factor = float(a @ b) / other**2 if other else 0.0
    if factor > 0 and float((a - factor * b).norm()) <= _SCALED * size:
        if shorter and factor < 1:
            return ""
        return (
            f"the gradient of the loop is {factor:.3g} times that of loss_fn at this batch: does the loop scale its "
            "loss, or accumulate batches that the scope was not told of?"
        )
    return (
        f"the gradient of the loop is not that of loss_fn at this batch (relative difference {distance:.2g}): does the "
        "loop use another loss or another batch, or does the loss use random numbers of its own, or something that the "
        "step changes, such as running averages?"
    )


def _seen(parameter: Parameter) -> tuple[int, int] | None:
    gradient = parameter.grad
    return None if gradient is None else (id(gradient), gradient._version)


def _flat(vector: Vector) -> Tensor:
    parts = [part.detach().reshape(-1).double() for part in vector]
    return torch.cat([part.to(parts[0].device) for part in parts]) if parts else torch.zeros(1)
