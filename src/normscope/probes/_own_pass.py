"""The user's own forward and backward pass, kept so that it need not be run again.

The gradient at the parameters with which a step begins is what most costly probes start from, and the user's own
backward pass has just computed it. It is used in place of a pass of the probes' own once it is proven to be the same:
at the first step both are computed and must agree in every bit. At every later step the loss function is run on the
user's own model output alone, and must send back into it the gradient that it received, in every bit: a loss that has
changed, a loss scale, a second loss are seen by that. Clipping and accumulation come after what is kept here.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from normscope._errors import UsageError
from normscope.modules.hooks import forward_replaced
from normscope.modules.values import same_bits
from normscope.probes._start import Start

if TYPE_CHECKING:
    from normscope.probes._replay import Evaluation, Replay

_PLAIN = (bool, int, float, str, type(None))


@dataclass(slots=True)
class _Part:
    """A tensor that the model returned, its version then, and the gradient that came back to it."""

    output: Tensor
    version: int
    wanted: bool
    gradient: Tensor | None = None
    returns: int = 0


class OwnPass:
    """What the user's pass computed at a step: model outputs, their gradients, and the parameters' gradients.

    Memory: one copy of the gradient, and the model's outputs with their gradients until the step ends.

    Args:
        model: The model.
        start: What the step began with.
        scale: Loss scale of the user's backward pass.
        proven: What is known of former steps, by the model's modes; shared by the steps of a scope.
    """

    def __init__(self, model: Module, start: Start, scale: float, proven: dict[tuple[Any, ...], bool]) -> None:
        self._model, self._start, self._scale, self._proven = model, start, scale, proven
        self._calls: list[tuple[list[Any], pytree.TreeSpec]] = []
        self._flat = [torch.zeros_like(start.flat[kind]) for kind in start.trainable_kinds]
        self._fired: set[int] = set()
        self._versions = self._parameter_versions()
        self._usable = True

    def attach(self, keep: Callable[[RemovableHandle], None]) -> None:
        """Set the hooks; ``keep`` is to remove them when the step ends."""
        self._keep = keep
        keep(self._model.register_forward_pre_hook(self._note_beginning))
        keep(self._model.register_forward_hook(self._note_output))
        whole: list[Tensor] = list(self._start.flat)
        for kind, part in zip(self._start.trainable_kinds, self._flat, strict=True):
            whole[kind] = part
        for slot in self._start.slots:
            if slot.trainable:
                note = partial(self._note_gradient, id(slot), slot.of(whole))
                keep(slot.parameter.register_hook(note))

    def _parameter_versions(self) -> list[int]:
        return [slot.parameter._version for slot in self._start.slots]

    def _note_beginning(self, *_: Any) -> None:
        if self._versions != self._parameter_versions():
            self._usable = False  # the block has changed parameters before its forward pass

    def _note_output(self, _module: Module, _inputs: Any, output: Any) -> None:
        if not torch.is_grad_enabled():
            return
        leaves, spec = pytree.tree_flatten(output)
        kept: list[Any] = []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                part = _Part(leaf.detach(), leaf._version, leaf.requires_grad)
                kept.append(part)
                if leaf.requires_grad:
                    self._keep(leaf.register_hook(partial(self._note_return, part)))
            else:
                kept.append(leaf)
                self._usable &= isinstance(leaf, _PLAIN)
        self._calls.append((kept, spec))

    @staticmethod
    def _note_return(part: _Part, gradient: Tensor) -> None:
        part.gradient, part.returns = gradient.detach(), part.returns + 1

    def _note_gradient(self, key: int, place: Tensor, gradient: Tensor) -> None:
        with torch.no_grad():
            dense = gradient if gradient.layout == torch.strided else gradient.to_dense()
            place.add_(dense) if key in self._fired else place.copy_(dense)
        self._fired.add(key)

    def origin(self, replay: "Replay") -> "Evaluation":
        """Return loss and gradient at the start of the step, from the user's own pass if that is proven to be them."""
        key = (*(mode for _, mode in self._start.modes), *map(id, self._start.slots), bool(self._start.autocast))
        found = self._evaluation(replay) if self._proven.get(key, True) else None
        if found is not None and key in self._proven:
            return found
        replay.reset()
        whole = replay.evaluate()
        if key not in self._proven and self._fired:
            self._proven[key] = found is not None and _same(found, whole)
        return whole

    def _evaluation(self, replay: "Replay") -> "Evaluation | None":
        """Run the loss on the kept outputs, and hold the gradient that it sends back against the one kept."""
        from normscope.probes._replay import Evaluation

        parts = [part for kept, _ in self._calls for part in kept if isinstance(part, _Part)]
        if not self._usable or not self._fired or any(part.output._version != part.version for part in parts):
            return None
        fresh = {id(part): part.output.detach().requires_grad_(part.wanted) for part in parts}
        wanted = [part for part in parts if part.wanted]
        with self._handing_out(fresh) as left:
            try:
                loss = replay.loss()
            except UsageError:
                return None
        if left or not wanted or not loss.requires_grad:
            return None
        back = torch.autograd.grad(loss * self._scale, [fresh[id(part)] for part in wanted], allow_unused=True)
        if not all(map(_same_return, wanted, back)):
            return None
        unscaled = self._flat if self._scale == 1 else [part * (1 / self._scale) for part in self._flat]
        return Evaluation(loss.detach(), unscaled)

    @contextmanager
    def _handing_out(self, fresh: dict[int, Tensor]) -> Iterator[list[Any]]:
        """Have the model return the kept outputs, call by call; yield those that were not asked for."""
        left = list(self._calls)

        def instead(*_: Any, **__: Any) -> Any:
            if not left:
                raise UsageError("the loss calls the model more often than the loop did")
            kept, spec = left.pop(0)
            leaves = [fresh[id(part)] if isinstance(part, _Part) else part for part in kept]
            return pytree.tree_unflatten(leaves, spec)

        with forward_replaced([self._model], lambda *_: instead):
            yield left


def _same_return(part: _Part, gradient: Tensor | None) -> bool:
    if gradient is None or part.gradient is None:
        return gradient is part.gradient
    return part.returns == 1 and same_bits(gradient, part.gradient)


def _same(found: "Evaluation", whole: "Evaluation") -> bool:
    def every(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
        return len(a) == len(b) and all(map(same_bits, a, b))

    return same_bits(found.loss, whole.loss) and every(found.gradient, whole.gradient)
