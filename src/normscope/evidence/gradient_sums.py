"""Which backward passes of a training write into one sum of gradients, and which begin a new one."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import Parameter, is_lazy

_LOOKS = 8  # gradients of a backward pass whose values are looked at: each look waits for the device


class GradientSums:
    """Hooks on the parameters of optimizers, which number the sums that backward passes write into ``.grad``.

    A backward pass adds to the present sum if a parameter still holds a gradient. It begins a new sum if the gradients
    that the present sum has written were set to zero or to None. A pass that only returns gradients, as
    ``torch.autograd.grad`` does, writes none.

    Args:
        optimizers: Whose parameters are listened to.
        note: Called with torch's number of a backward pass that has written gradients, and the number of its sum: 0
            for the sum that was under way before ``attach``. The last call for a pass holds.
        safe: Wraps a hook.
    """

    def __init__(
        self,
        optimizers: Iterable[Any],
        note: Callable[[int, int], None],
        safe: Callable[[Callable[..., None]], Callable[..., None]],
    ) -> None:
        held = (p for opt in optimizers for group in getattr(opt, "param_groups", ()) for p in group["params"])
        self._parameters = list({id(p): p for p in held if _is_heard(p)}.values())
        self._note, self._safe = note, safe
        self._handles: list[Any] = []
        self._bare: list[tuple[Parameter, str]] = []
        self._number, self._graph, self._looks = 0, -1, 0
        self._present, self._begins, self._adds = 0, False, False
        self._of_pass: set[int] = set()
        self._of_sum: set[int] = set()
        self._kept: set[int] = set()

    def attach(self) -> None:
        """Set the hooks."""
        for index, parameter in enumerate(self._parameters):
            for name in ("_backward_hooks", "_post_accumulate_grad_hooks"):
                if getattr(parameter, name) is None:
                    self._bare.append((parameter, name))
            before, after = partial(self._before, index, parameter), partial(self._after, index)
            self._handles.append(parameter.register_hook(self._safe(before)))
            # Torch calls the first hook for autograd.grad too, which writes no gradient; this one it does not.
            self._handles.append(parameter.register_post_accumulate_grad_hook(self._safe(after)))

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        for parameter, name in self._bare:
            if not getattr(parameter, name):
                setattr(parameter, name, None)
        self._handles.clear()
        self._bare.clear()

    def _before(self, index: int, parameter: Parameter, _gradient: Tensor) -> None:
        graph = torch._C._current_graph_task_id()
        if graph != self._graph:
            self._of_sum = self._of_pass if self._number > self._present else self._of_sum | self._of_pass
            self._of_pass = set()
            self._graph, self._present, self._looks = graph, self._number, 0
            self._begins = self._adds = False
        self._kept.discard(index)
        if self._adds or self._holds(parameter.grad):
            self._kept.add(index)

    def _holds(self, gradient: Tensor | None) -> bool:
        if gradient is None or self._looks >= _LOOKS:
            return False
        self._looks += 1
        gradient = getattr(gradient, "_local_tensor", gradient)  # of a distributed tensor: no process waits for another
        if gradient.layout is not torch.strided:
            return bool(gradient._nnz())
        return bool(gradient.detach().any())

    def _after(self, index: int, _parameter: Parameter) -> None:
        if index in self._kept:
            self._adds = True  # holds for the whole pass: a gradient may be zero without having been set to zero
        elif index in self._of_sum or not self._of_sum:
            self._begins = True
        self._of_pass.add(index)
        self._number = self._present + (self._begins and not self._adds)
        self._note(self._graph, self._number)


def _is_heard(parameter: Any) -> bool:
    # Other tensors would warn of the hooks when they are saved in the middle of a step.
    return (
        isinstance(parameter, Parameter)
        and not is_lazy(parameter)
        and parameter.requires_grad
        and parameter.is_leaf
        and not parameter.is_meta
    )
