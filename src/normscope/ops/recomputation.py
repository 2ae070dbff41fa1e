"""Whether a forward is the second of its kind: run again in a backward, because activations were not kept.

A checkpointed part of a network (``torch.utils.checkpoint``, in either mode) runs twice a step, its second forward
inside the backward that needs its activations. What a forward leaves behind must be left once.
"""

import torch
from torch import Tensor

# Torch before 2.7 does not tell exporting from compiling.
_is_exporting = getattr(torch.compiler, "is_exporting", bool)

_LIBRARY = torch.library.Library("normscope", "FRAGMENT")
# Tagged as random, so that the compiler neither folds it into a constant nor takes one call's answer for another's.
_LIBRARY.define("in_backward(Tensor like) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
_LIBRARY.define("snapshot(Tensor values) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))


def in_backward() -> bool:
    """Say whether this thread is running a backward pass."""
    return torch._C._current_graph_task_id() != -1


def _as_tensor(like: Tensor) -> Tensor:
    return torch.full((), in_backward(), dtype=torch.bool, device=like.device)


def _shape(like: Tensor) -> Tensor:
    return torch.empty((), dtype=torch.bool, device=like.device)


_LIBRARY.impl("in_backward", _as_tensor, "CompositeExplicitAutograd")
_LIBRARY.impl("in_backward", _shape, "Meta")
_LIBRARY.impl("snapshot", torch.clone, "CompositeExplicitAutograd")


def is_recomputation(like: Tensor) -> bool | Tensor:
    """Say whether this forward is run again inside a backward.

    Args:
        like: A tensor on whose device the answer is wanted, where it is one.

    Returns:
        True or False; under the compiler, which cannot know it in advance, a boolean tensor ``()``.
    """
    if torch.compiler.is_compiling():
        if _is_exporting():  # a program for use elsewhere, with operators that all have
            return False
        return torch.ops.normscope.in_backward(like)
    return in_backward()


def snapshot(values: Tensor) -> Tensor:
    """Return a copy of values that will be overwritten, for a backward that needs them as they are.

    The compiler would rather take them again in the backward than keep the copy, and by then they have moved; so to it
    this is an operation that cannot be repeated.
    """
    if torch.compiler.is_compiling() and not _is_exporting():
        return torch.ops.normscope.snapshot(values)
    return values.clone()
