"""Whether a backward is the only owner of its cotangent, so that its memory may be used again."""

import functools
import sys
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

#: Bytes from which on a cotangent's memory is used again, if nobody else holds it: below, finding out costs more.
LARGE = 1 << 20


class _Twin(Function):
    """Sees how often a cotangent is referred to, in a backward like those that ask `is_sole_owner`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seen: list[int]) -> Tensor:
        ctx.seen = seen
        return x * 1

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        ctx.seen.append(_asked_about(g))
        return g, None


@functools.cache
def _references_of_a_sole_owner() -> int:
    """Return how many references a backward sees to a cotangent of its own; -1 if that cannot be told.

    Calibrated once on a gradient with no other owner and on one held by a hook: it depends on how torch calls a
    backward.
    """
    seen: list[int] = []
    kept: list[Tensor] = []
    with torch.enable_grad():
        for keeps in (False, True):
            y = _Twin.apply(torch.ones(2, requires_grad=True), seen)
            if keeps:
                y.register_hook(kept.append)
            (y * 2).sum().backward()
    return seen[0] if seen[0] != seen[1] else -1


def _references_to(g: Tensor) -> int:
    """Return how many references Python holds to a tensor; 0 if it is a view, or C++ holds another reference."""
    count = getattr(g, "_use_count", None)  # not in every torch
    alone = (
        count is not None
        and count() == 1
        and not g._is_view()
        and torch._C._storage_Use_Count(g.untyped_storage()._cdata) == 2  # the tensor, and the handle just made
    )
    return sys.getrefcount(g) if alone else 0


def _asked_about(g: Tensor) -> int:
    """Count from as deep in the stack as `is_sole_owner` does."""
    return _references_to(g)


def is_sole_owner(g: Tensor) -> bool:
    """Say whether a backward may write over its cotangent: it is large, and nobody else holds it.

    To be called with a name of the backward's own for the cotangent, and no other.
    """
    return g.nbytes >= LARGE and _references_to(g) == _references_of_a_sole_owner()
