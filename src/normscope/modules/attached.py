"""What hangs on a tensor beside its value, kept and put back."""

from collections.abc import Iterator
from typing import Any


class Attached:
    """What hangs on a tensor beside its value: ``requires_grad``, its gradient, its hooks, and whether it is a leaf.

    Args:
        name: How messages call the tensor.
        tensor: The tensor.
    """

    __slots__ = ("after_hooks", "grad", "hooks", "is_leaf", "name", "requires_grad", "tensor")

    def __init__(self, name: str, tensor: Any) -> None:
        self.name, self.tensor = name, tensor
        self.is_leaf, self.requires_grad = tensor.is_leaf, tensor.requires_grad
        self.grad = tensor.grad if self.is_leaf else None
        self.hooks, self.after_hooks = tensor._backward_hooks, tensor._post_accumulate_grad_hooks

    def is_as_it_was(self) -> bool:
        """Whether all of this is the same still."""
        tensor = self.tensor
        return (
            tensor.requires_grad is self.requires_grad
            and tensor.is_leaf is self.is_leaf
            and (not self.is_leaf or tensor.grad is self.grad)
            and (tensor._backward_hooks is self.hooks and tensor._post_accumulate_grad_hooks is self.after_hooks)
        )

    def differences(self) -> Iterator[str]:
        """Name what is not."""
        tensor = self.tensor
        if tensor.requires_grad is not self.requires_grad or tensor.is_leaf is not self.is_leaf:
            yield f"requires_grad of {self.name}"
        if tensor.is_leaf and tensor.grad is not self.grad:
            yield f"identity of the gradient of {self.name}"
        # Where a first hook was set and removed again, an empty dictionary stays, which is no trace.
        if _other(tensor._backward_hooks, self.hooks) or _other(tensor._post_accumulate_grad_hooks, self.after_hooks):
            yield f"hooks of {self.name}"

    def restore(self) -> None:
        """Put all of it back."""
        tensor = self.tensor
        if self.is_leaf and not tensor.is_leaf:
            tensor.detach_()  # it was updated in place with a graph
        if tensor.requires_grad is not self.requires_grad:
            tensor.requires_grad_(self.requires_grad)
        if tensor.is_leaf and tensor.grad is not self.grad:
            tensor.grad = self.grad
        if _other(tensor._backward_hooks, self.hooks):
            tensor._backward_hooks = self.hooks
        if _other(tensor._post_accumulate_grad_hooks, self.after_hooks):
            tensor._post_accumulate_grad_hooks = self.after_hooks


def _other(now: Any, kept: Any) -> bool:
    return now is not kept and bool(now or kept)
