"""Whether what a model gives for a sample in evaluation depends on the samples beside it, and batches mixed anew."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils import _pytree as pytree

from normscope.evidence.case import Case
from normscope.evidence.sandbox import sandbox
from normscope.modules.batches import tensors
from normscope.modules.call import set_mode
from normscope.modules.rng import torch_streams_kept
from normscope.usercode import users_code

_CHANGE = 1e-3  # of the root mean square of an output: other kernels for other sizes of batch stay well below


def depends_on_batch(case: Case, batch: Any) -> bool:
    """Whether in eval mode the outputs for every second sample of a batch are others without the samples between.

    False where that cannot be seen: a batch of one sample, outputs that are none of samples, a model that draws random
    numbers in evaluation, or that cannot be called with half of a batch.

    Args:
        case: The set-up.
        batch: A batch of evaluation.

    Raises:
        UsageError: The loss raises.
    """
    calls: list[tuple[Any, Any]] = []
    with sandbox(case):
        set_mode(case.model, False)
        handle = case.model.register_forward_pre_hook(lambda _, *given: calls.append(given), with_kwargs=True)
        with users_code("the loss of evaluation"):
            case.loss_of(case.model, batch, evaluation=True)
        handle.remove()
        if not calls:
            return False
        args, kwargs = calls[-1]
        count = next((len(leaf) for leaf in tensors((args, kwargs)) if leaf.ndim), 0)
        try:
            whole, again = (_outputs(case.model, args, kwargs, count, drawn) for drawn in (1, 2))
            args, kwargs = _every_second((args, kwargs), count)
            half = _outputs(case.model, args, kwargs, (count + 1) // 2, 3)
        except Exception:  # a model may want a size of batch, or more than tensors
            return False
    if count < 2 or len(whole) != len(half) or any(_apart(a, b) for a, b in zip(whole, again, strict=True)):
        return False
    return any(a[::2].shape == b.shape and _apart(a[::2], b) for a, b in zip(whole, half, strict=True))


def mixed_anew(taken: list[Any], like: Any) -> list[Any] | None:
    """Return the samples of some batches shuffled, in batches of the size of another; a remainder is left out.

    Args:
        taken: The batches.
        like: The batch whose size is wanted. Fewer samples make one batch.

    Returns:
        The batches; None where batches are not tensors of samples, all of the same shapes.
    """
    size = next((len(leaf) for leaf in tensors(like) if leaf.ndim), 0)
    columns, form = _columns(taken)
    if not columns or size < 2:
        return None
    total = len(columns[0])
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    parts = [part for part in order.split(size) if len(part) == min(size, total)]
    return [pytree.tree_unflatten([column[part.to(column.device)] for column in columns], form) for part in parts]


def _columns(taken: list[Any]) -> tuple[list[Tensor], Any]:
    leaves = [pytree.tree_flatten(batch) for batch in taken]
    form = leaves[0][1]
    for found, other in leaves:
        counts = {len(leaf) if isinstance(leaf, Tensor) and leaf.ndim else -1 for leaf in found}
        if other != form or len(counts) != 1 or -1 in counts:
            return [], form
    try:
        return [torch.cat(column) for column in zip(*(found for found, _ in leaves), strict=True)], form
    except RuntimeError:  # samples of several shapes
        return [], form


def _every_second(given: Any, count: int) -> Any:
    def half(leaf: Any) -> Any:
        return leaf[::2] if isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == count else leaf

    return pytree.tree_map(half, given)


def _outputs(model: Module, args: Any, kwargs: Any, count: int, drawn: int) -> list[Tensor]:
    with torch.no_grad(), torch_streams_kept():
        torch.rand(drawn)  # so that a model which draws random numbers gets others each time
        found = tensors(model(*args, **kwargs))
    return [t.detach().double() for t in found if t.is_floating_point() and t.ndim and len(t) == count]


def _apart(one: Tensor, other: Tensor) -> bool:
    scale = float(one.square().mean().sqrt())
    return not float((one - other).abs().max()) <= _CHANGE * scale
