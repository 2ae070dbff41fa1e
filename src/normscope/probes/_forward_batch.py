"""The batches of a step, taken from the calls of the model itself."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from normscope.modules.batches import tensors
from normscope.modules.hooks import Hook
from normscope.modules.wrapped import calls_eagerly, unwrap


class ForwardBatches:
    """Takes what the model's forward is called with during a step as the batch of the loss.

    A call that follows a backward pass brings a further batch: the step accumulates gradients. Several calls before a
    backward pass belong to one loss, of which the batch is then not known. Calls without recording of gradients are
    passed over, and so are calls of a backward pass that computes activations anew.

    Args:
        model: The model, in its wrappers.
        take: Called with each batch, before the model runs: its one argument, the mapping of its keywords, or the tuple
            of its arguments.
        discarded: Called with the module and the arguments of its call where a pass follows another whose gradients are
            gone and no optimizer has used; None where updates are not heard.
    """

    def __init__(
        self, model: Module, take: Callable[[Any], None], discarded: Callable[[Module, Any, Any], None] | None = None
    ) -> None:
        compiled_in_place = not calls_eagerly(model)
        self._model = model if _is_compiled_wrapper(model) else unwrap(model)
        self._hears = not compiled_in_place and calls_eagerly(self._model)
        self._take, self._discarded = take, discarded
        self._calls, self._taken = 0, 0
        self._backward_ran = True
        self._unclear = 0
        self.updating = self._updated = False
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Set the hooks of the model."""
        if self._hears:
            self._handles.append(self._model.register_forward_pre_hook(Hook(self.called), with_kwargs=True))
            self._handles.append(self._model.register_forward_hook(Hook(self._returned)))

    def detach(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def set_updating(self, updating: bool) -> None:
        """Note that an optimizer's ``step`` begins or has ended."""
        self.updating = updating
        self._updated = True

    def called(self, module: Module, args: Any, kwargs: Any = None) -> None:
        """Take the arguments of a call."""
        if not self._handles:  # removed by another hook of this call, which torch calls nevertheless, without keywords
            return
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return
        self._calls += 1
        if not self._backward_ran:
            self._unclear += 1
            return
        if self._taken and self.updating:
            return  # the closure of an optimizer that evaluates the same loss several times
        if self._taken and self._discarded is not None and not self._updated and not _holds_gradients(self._model):
            self._discarded(module, args, kwargs)
            return
        self._backward_ran = False
        self._taken += 1
        self._take(batch_of_call(args, kwargs))

    def _returned(self, _module: Module, _args: Any, output: Any) -> None:
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return
        for tensor in tensors(output):
            if tensor.requires_grad:
                self._handles.append(tensor.register_hook(self._came_back))

    def _came_back(self, _gradient: Tensor) -> None:
        self._backward_ran = True

    def why_unknown(self) -> str:
        """Say why the batch of the step is not known; empty if it is."""
        give = "give it by scope.step(batch) or scope.begin(batch)"
        if not self._hears:
            return f"the calls of a compiled model cannot be heard, so the batch is not known: {give}"
        if self._unclear:
            return (
                f"the model was called {self._calls} times for one loss, so the batch of the loss is not known: {give}"
            )
        if not self._taken:
            return f"the model itself was not called, only its parts, so the batch is not known: {give}"
        return ""


def _holds_gradients(model: Module) -> bool:
    return any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())


def batch_of_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what a model was called with: its one argument, the mapping of its keywords, or all as a tuple."""
    if not kwargs:
        return args[0] if len(args) == 1 else args
    return kwargs if not args else (*args, kwargs)


def _is_compiled_wrapper(model: Module) -> bool:
    return "_orig_mod" in model._modules
