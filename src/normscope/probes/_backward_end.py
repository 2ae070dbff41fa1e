"""When a backward pass has ended, and which gradients are then to be read: before anything clips them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import Module, Parameter

from normscope.modules.hooks import TensorHooks
from normscope.modules.shards import is_distributed


class BackwardEnd:
    """Calls functions when a backward pass that reaches given parameters has ended.

    Args:
        acts: The functions; they must not raise.
    """

    def __init__(self, acts: Sequence[Callable[[], None]]) -> None:
        self._acts = acts
        self._task = -1

    def attach(self, parameters: Iterable[Tensor], hooks: TensorHooks) -> None:
        """Set a hook on each parameter that is trained; ``hooks`` must be removed when the step ends."""
        for parameter in parameters:
            if parameter.requires_grad and parameter.is_leaf:
                hooks.after_accumulation(parameter, self._reached)

    def _reached(self, _: Tensor) -> None:
        # By the number of the pass, so that a pass that failed is not waited for. A pass within a pass, as a
        # checkpoint begins it, has a number of its own.
        task = torch._C._current_graph_task_id()
        if task == self._task or not self._acts:
            return
        self._task = task
        _at_end(self._wait)

    def _wait(self) -> None:
        # Data-parallel wrappers hand out the gradients in such a call too, which may have been queued after this one.
        _at_end(self._ended)

    def _ended(self) -> None:
        self._task = -1
        for act in self._acts:
            act()


def _at_end(act: Callable[[], None]) -> None:
    torch.autograd.Variable._execution_engine.queue_callback(act)


@dataclass(slots=True)
class _Seen:
    """What was known of a parameter when its gradient was read."""

    parameter_version: int
    gradient: tuple[int, int]
    handed_over: bool = False
    later: bool = False


class Gradients:
    """Which of some parameters have a gradient to be read now: of the last backward pass before the parameter changes.

    So it is the gradient at the values with which the step began: of several backward passes that add up, the sum, also
    where the last of them runs in the optimizer's closure (Lightning); with an optimizer that evaluates a closure
    several times (LBFGS), of the first; with a perturbed second pass (SAM), of the unperturbed one.

    Args:
        parameters: The parameters.
        updating: Whether an optimizer is in its step, so that a backward pass is its closure's.
        thorough: Whether gradients are taken for changed before the update where torch has counted no change, too.

    Attributes:
        uncounted: Of the changed gradients those of which torch has counted no change, by ``id`` of the parameter.
    """

    def __init__(
        self, parameters: Iterable[Parameter], updating: Callable[[], bool] = lambda: False, thorough: bool = False
    ) -> None:
        self._updating, self._thorough = updating, thorough
        self.uncounted: set[int] = set()
        self._parameters = {id(parameter): parameter for parameter in parameters}
        self._seen: dict[int, _Seen] = {}

    def after_backward(self) -> list[Parameter]:
        """Return the parameters whose gradient is to be read, now that a backward pass has ended."""
        found = []
        for key, parameter in self._parameters.items():
            gradient = parameter.grad
            if gradient is None:
                continue
            seen = self._seen.get(key)
            # Of a parameter that was handed over, torch may keep no count of its changes (``.data``).
            if seen is None or (
                seen.parameter_version == parameter._version and (not seen.handed_over or self._updating())
            ):
                self._seen[key] = _Seen(parameter._version, _mark(gradient))
                self.uncounted.discard(key)
                found.append(parameter)
            else:
                seen.later = True
        return found

    def before_update(self, updated: Mapping[int, Parameter]) -> tuple[list[Parameter], list[Parameter]]:
        """Return those of the parameters that an optimizer is about to change which are to be read.

        Returns:
            The parameters whose gradient no backward pass has shown; and those whose gradient was changed since.
        """
        unread, changed = [], []
        for key, parameter in self._parameters.items():
            if key not in updated or parameter.grad is None:
                continue
            seen = self._seen.get(key)
            if seen is None:
                unread.append(parameter)
            elif not seen.handed_over:
                seen.handed_over = True
                # After a later pass a new gradient may lie where the old one lay, written to as often.
                if seen.later or _is_changed(parameter.grad, seen.gradient):
                    changed.append(parameter)
                elif self._thorough:
                    self.uncounted.add(key)
                    changed.append(parameter)
        return unread, changed

    def at_end(self) -> tuple[list[Parameter], list[Parameter]]:
        """As ``before_update``, as the step ends: for optimizers whose closure runs the pass, and loops without any."""
        unread, changed = [], []
        for key, parameter in self._parameters.items():
            if parameter.grad is None:
                continue
            seen = self._seen.get(key)
            if seen is None:
                unread.append(parameter)
            elif not (seen.handed_over or seen.later) and _is_changed(parameter.grad, seen.gradient):
                changed.append(parameter)
        return unread, changed


class UncountedChanges:
    """Whether loops change gradients of which torch counts no change (``.grad.data``), as a first reading has shown."""

    def __init__(self) -> None:
        self._found: WeakKeyDictionary[Module, bool] = WeakKeyDictionary()

    def possible(self, model: Module) -> bool:
        """Whether such a change is known, or nothing is known yet."""
        return self._found.get(model, True)

    def note(self, model: Module, changed: Iterable[bool]) -> None:
        """Note of each gradient that was compared though no change was counted, whether it was changed."""
        compared = list(changed)
        if compared:
            self._found[model] = any(compared)


def _mark(gradient: Tensor) -> tuple[int, int]:
    """Whose value it is: of the tensor at an address, written to so many times."""
    return id(gradient), gradient._version


def _is_changed(gradient: Tensor, then: tuple[int, int]) -> bool:
    """Whether a gradient may have another value; of sharded ones torch does not count every change."""
    return is_distributed(gradient) or _mark(gradient) != then
