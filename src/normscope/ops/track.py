"""Running statistics: averages over batches, which normalize where no batch does."""

import torch
from torch import Tensor

from normscope.ops.moments import Moments, merge
from normscope.ops.ways.choose import is_written_out


def share_of_batch(
    momentum: float | None, batches_before: Tensor | None, dtype: torch.dtype = torch.float32
) -> float | Tensor:
    """Return the share that the newest batch gets in the running statistics.

    Args:
        momentum: That share, or None for the plain average of all batches.
        batches_before: Batches tracked before this one; read only where ``momentum`` is None.
        dtype: Of the share, where it is a tensor.

    Returns:
        ``momentum``; else one over the number of batches (0 where they are not counted), which is a tensor ``()`` where
        no value can be looked at.
    """
    if momentum is not None:
        return momentum
    if batches_before is None:
        return 0.0
    return 1 / (batches_before + 1).to(dtype) if is_written_out() else 1.0 / (float(batches_before) + 1.0)


def track(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    mean: Tensor,
    var: Tensor,
    momentum: float | Tensor,
    where: bool | Tensor = True,
) -> None:
    """Move the running statistics toward those of a batch, in place.

    Args:
        running_mean: Running mean ``(C,)``, or None.
        running_var: Running variance ``(C,)``, or None.
        mean: Mean of the batch ``(C,)``.
        var: Variance of the batch ``(C,)``; torch tracks the unbiased one.
        momentum: Share of the batch in the result: a number or a tensor ``()``.
        where: Whether to move them at all: True, or a boolean tensor ``()``.
    """
    with torch.no_grad():
        for running, batch in ((running_mean, mean), (running_var, var)):
            if running is None:
                continue
            batch = batch.detach()
            if where is True and not isinstance(momentum, Tensor) and running.dtype == batch.dtype:
                # Not lerp_, for which vmap has no rule.
                running.mul_(1 - momentum).add_(batch, alpha=momentum)
                continue
            # In the wider type, rounded once; and by selection: a NaN times 0 would not stay out.
            moved = running.to(batch.dtype)
            moved = moved + (batch - moved) * momentum
            running.copy_(moved if where is True else torch.where(torch.as_tensor(where), moved, running))


def count_batch(seen: Tensor | None) -> None:
    """Raise a count of batches by one."""
    if seen is not None:
        with torch.no_grad():
            seen.add_(1)


def is_sound(moments: Moments) -> Tensor:
    """Say whether moments are fit to be remembered: finite, and of more than one value in every channel.

    Returns:
        A boolean tensor ``()``.
    """
    finite = (moments.mean + moments.low).isfinite().all() & moments.m2.isfinite().all()
    if isinstance(moments.count, Tensor):
        return finite & (moments.count > 1).all()
    return finite if moments.count > 1 else torch.zeros_like(finite)


def accumulate(pending: Tensor, moments: Moments, batches: int, where: bool | Tensor) -> tuple[Moments, Tensor]:
    """Merge a batch into the batches that wait for the next update, in place.

    Args:
        pending: Rows ``(5, C)``: how many batches wait; their count, mean, low part of the mean, and sum of
            squared deviations. Emptied when ``batches`` have come together.
        moments: Of the batch ``(C,)``.
        batches: How many make one update.
        where: Whether this batch counts: a truth value or a boolean tensor ``()``.

    Returns:
        The moments of the batches that wait, this one included; and whether they make an update, a boolean tensor.
    """
    waiting, count, mean, low, m2 = pending.unbind()
    new = moments.detach()
    merged = merge(Moments(count, mean, low, m2), Moments(new.count + torch.zeros_like(count), *_values(new, pending)))
    full = (waiting[0] + 1 >= batches) & where
    with torch.no_grad():
        rows = torch.stack([waiting + 1, torch.as_tensor(merged.count), merged.mean, merged.low, merged.m2])
        rows = torch.where(full, torch.zeros_like(rows), rows)
        pending.copy_(rows if where is True else torch.where(torch.as_tensor(where), rows, pending))
    return merged, full


def _values(m: Moments, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return m.mean.to(like.dtype), m.low.to(like.dtype), m.m2.to(like.dtype)
