"""The user's own forward and backward pass, kept so that it need not be run again.

Most costly probes start from the gradient at the parameters with which a step begins, and the user's own backward pass
has just computed that gradient. It replaces a pass of the probes' own once the two are proven to be the same: at the
first step both are computed and must agree in every bit. At every later step the loss function alone is run on the
user's model output, and its gradient with respect to that output must agree in every bit with the gradient that the
user's pass sent there. This detects a changed loss, a loss scale and a second loss. Gradients are kept before clipping
and accumulation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from normscope._errors import UsageError
from normscope.modules.hooks import Hook, forward_replaced
from normscope.modules.values import same_bits
from normscope.probes._replay import Replay
from normscope.probes._start_state import StartState
from normscope.probes._vectors import Evaluation, Vector

_PLAIN = (bool, int, float, str, type(None))


@dataclass(slots=True)
class _Output:
    """A tensor that the model returned, its version then, and the gradient of the loss with respect to it."""

    output: Tensor
    version: int
    wanted: bool
    gradient: Tensor | None = None
    returns: int = 0


class UsersPass:
    """What the user's pass computed at a step: model outputs, their gradients, and the parameters' gradients.

    Memory: one copy of the gradient, and the model's outputs with their gradients until the step ends.

    Args:
        model: The model.
        start: The state with which the step began.
        scale: Loss scale of the user's backward pass.
        proven: Whether the user's gradient was proven to be the origin's at an earlier step, by the model's modes and
            parameters. Shared by the steps of a training, and written to.
    """

    def __init__(self, model: Module, start: StartState, scale: float, proven: dict[tuple[Any, ...], bool]) -> None:
        self._model, self._start, self._scale, self._proven = model, start, scale, proven
        self._calls: list[tuple[list[Any], pytree.TreeSpec]] = []
        self._flat = [torch.zeros_like(start.flat[kind]) for kind in start.trainable_kinds]
        self._received: set[int] = set()
        self._versions = self._parameter_versions()
        self._usable = True

    def attach(self, keep: Callable[[RemovableHandle], None]) -> None:
        """Set the hooks; ``keep`` must remove them when the step ends."""
        self._keep = keep
        keep(self._model.register_forward_pre_hook(Hook(self._check_parameters)))
        keep(self._model.register_forward_hook(Hook(self._note_output)))
        whole: list[Tensor] = list(self._start.flat)
        for kind, part in zip(self._start.trainable_kinds, self._flat, strict=True):
            whole[kind] = part
        for slot in self._start.slots:
            if slot.trainable:
                note = partial(self._note_gradient, id(slot), slot.of(whole))
                keep(slot.parameter.register_hook(note))

    def _parameter_versions(self) -> list[int]:
        return [slot.parameter._version for slot in self._start.slots]

    def _check_parameters(self, *_: Any) -> None:
        if self._versions != self._parameter_versions():
            self._usable = False  # the block has changed parameters before its forward pass

    def _note_output(self, _module: Module, _inputs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        leaves, spec = pytree.tree_flatten(output)
        kept: list[Any] = []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                part = _Output(leaf.detach(), leaf._version, leaf.requires_grad)
                kept.append(part)
                if leaf.requires_grad:
                    self._keep(leaf.register_hook(partial(self._note_gradient_of_output, part)))
            else:
                kept.append(leaf)
                self._usable &= isinstance(leaf, _PLAIN)
        self._calls.append((kept, spec))

    @staticmethod
    def _note_gradient_of_output(part: _Output, gradient: Tensor) -> None:
        part.gradient, part.returns = gradient.detach(), part.returns + 1

    def _note_gradient(self, key: int, place: Tensor, gradient: Tensor) -> None:
        with torch.no_grad():
            dense = gradient if gradient.layout == torch.strided else gradient.to_dense()
            place.add_(dense) if key in self._received else place.copy_(dense)
        self._received.add(key)

    def received(self) -> Vector | None:
        """Return the gradient that the user's backward passes sent to the parameters; None if none came."""
        if not self._received:
            return None
        return self._flat if self._scale == 1 else [part * (1 / self._scale) for part in self._flat]

    def origin(self, replay: Replay) -> Evaluation:
        """Return loss and gradient at the start of the step: the user's own once proven, else computed."""
        key = (
            *(mode for _, mode in self._start.conditions.modes),
            *map(id, self._start.slots),
            bool(self._start.conditions.autocast),
        )
        kept = self._evaluation(replay) if self._proven.get(key, True) else None
        if kept is not None and key in self._proven:
            return kept
        replay.reset()
        computed = replay.evaluate()
        if key not in self._proven and self._received:
            self._proven[key] = kept is not None and _same(kept, computed)
        return computed

    def _evaluation(self, replay: Replay) -> Evaluation | None:
        """Run the loss on the kept outputs; None unless it sends back the kept gradients, bit for bit."""
        parts = [part for kept, _ in self._calls for part in kept if isinstance(part, _Output)]
        if not self._usable or not self._received or any(part.output._version != part.version for part in parts):
            return None
        fresh = {id(part): part.output.detach().requires_grad_(part.wanted) for part in parts}
        wanted = [part for part in parts if part.wanted]
        with self._model_returning(fresh) as left:
            try:
                loss = replay.loss()
            except (UsageError, RuntimeError, AttributeError):  # it needs more of the model than its outputs
                return None
        if left or not wanted or not loss.requires_grad:
            return None
        back = torch.autograd.grad(loss * self._scale, [fresh[id(part)] for part in wanted], allow_unused=True)
        if not all(map(_same_gradient, wanted, back)):
            return None
        unscaled = self._flat if self._scale == 1 else [part * (1 / self._scale) for part in self._flat]
        return Evaluation(loss.detach(), unscaled)

    @contextmanager
    def _model_returning(self, fresh: dict[int, Tensor]) -> Iterator[list[Any]]:
        """Have the model return the kept outputs, call by call; yield the list of outputs not yet handed out."""
        left = list(self._calls)

        def instead(*_: Any, **__: Any) -> Any:
            if not left:
                raise UsageError("the loss calls the model more often than the loop did")
            kept, spec = left.pop(0)
            leaves = [fresh[id(part)] if isinstance(part, _Output) else part for part in kept]
            return pytree.tree_unflatten(leaves, spec)

        with forward_replaced([self._model], lambda *_: instead):
            yield left


def _same_gradient(part: _Output, gradient: Tensor | None) -> bool:
    if gradient is None or part.gradient is None:
        return gradient is part.gradient
    return part.returns == 1 and same_bits(gradient, part.gradient)


def _same(a: Evaluation, b: Evaluation) -> bool:
    def agree(p: Sequence[Tensor], q: Sequence[Tensor]) -> bool:
        return len(p) == len(q) and all(map(same_bits, p, q))

    return same_bits(a.loss, b.loss) and agree(a.gradient, b.gradient)
