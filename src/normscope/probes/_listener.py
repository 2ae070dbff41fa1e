"""What the hooks of one module hear, passed on to the probes that asked for it."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from normscope.modules.autocast import beside
from normscope.modules.batches import leading_tensor
from normscope.modules.hooks import TensorHooks

Reader = Callable[[Tensor], None]
NodeReader = Callable[[Sequence[Tensor | None], Sequence[Tensor | None]], None]
CallReader = Callable[[Tensor, Tensor], Reader | None]


class Listener:
    """Passes the inputs, outputs and output gradients of one module on to the readers that asked for them."""

    __slots__ = (
        "_guarded",
        "_hooks",
        "_unscale",
        "calls",
        "gradients",
        "hooks_after",
        "hooks_before",
        "inputs",
        "outputs",
    )

    def __init__(self, guarded: Callable[..., Any], hooks: TensorHooks, unscale: float) -> None:
        self._guarded, self._hooks, self._unscale = guarded, hooks, unscale
        self.inputs: list[tuple[Hashable, Reader]] = []
        self.calls: list[tuple[Hashable, CallReader]] = []
        self.outputs: list[tuple[Hashable, Reader]] = []
        self.gradients: list[tuple[Hashable, Reader]] = []
        self.hooks_before: list[tuple[Hashable, Callable[..., None]]] = []
        self.hooks_after: list[tuple[Hashable, Callable[..., None]]] = []

    def readers(self) -> Iterator[tuple[Hashable, Callable[..., Any]]]:
        """Yield all that asked for something, with their probes."""
        yield from self.inputs
        yield from self.calls
        yield from self.outputs
        yield from self.gradients
        yield from self.hooks_before
        yield from self.hooks_after

    def before(self, module: Module, inputs: Any, keywords: Any) -> None:
        """Read the input of a call."""
        if self.hooks_before:
            self._guarded(self.hooks_before, module, inputs)
        if not self.inputs or not torch.is_grad_enabled():
            return
        tensor = _leading(inputs) if inputs else leading_tensor(keywords)
        if tensor is not None:
            beside(self._guarded, self.inputs, tensor.detach())

    def after(self, module: Module, inputs: Any, output: Any) -> None:
        """Read the output of a call, and have its gradient read on the way back."""
        if self.hooks_after:
            self._guarded(self.hooks_after, module, inputs, output)
        tensor = output if type(output) is Tensor and output.is_floating_point() else leading_tensor(output)
        if tensor is None or not torch.is_grad_enabled():
            return
        gradients = self.gradients
        if self.calls or self.outputs:
            gradients = gradients + beside(self._made, inputs, tensor.detach())
        if gradients and tensor.requires_grad:
            self._hooks.on_gradient(tensor, partial(beside, self._back, gradients))

    def _made(self, inputs: Any, output: Tensor) -> list[tuple[Hashable, Reader]]:
        """Have input and output of a call read; return what is to read the gradient of this output alone."""
        returned: list[tuple[Hashable, Reader]] = []
        if self.calls and (source := _leading(inputs)) is not None:
            found = self._guarded(self.calls, source.detach(), output)
            returned = [(probe, read) for (probe, _), read in zip(self.calls, found, strict=True) if read is not None]
        self._guarded(self.outputs, output)
        return returned

    def _back(self, readers: list[tuple[Hashable, Reader]], gradient: Tensor) -> None:
        gradient = gradient.detach()
        self._guarded(readers, gradient if self._unscale == 1 else unscaled(gradient, self._unscale))


def _leading(inputs: Any) -> Tensor | None:
    """Return the first floating-point tensor of a module's arguments, or None."""
    first = inputs[0] if inputs else None
    return first if type(first) is Tensor and first.is_floating_point() else leading_tensor(inputs)


def unscaled(gradient: Tensor, factor: float) -> Tensor:
    """Multiply by the inverse of the loss scale, in float32 or wider: half precision would underflow."""
    wide = gradient if gradient.dtype in (torch.float32, torch.float64) else gradient.float()
    return wide * factor
