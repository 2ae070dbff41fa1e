"""Running statistics: what a batch norm remembers of its batches for the time it sees none."""

import torch
from torch import Tensor


def weight_of_batch(momentum: float | None, batches_seen: Tensor | int | None) -> float:
    """Return the share that the newest batch gets in the running statistics.

    Args:
        momentum: That share, or None for the plain average of all batches.
        batches_seen: Batches tracked so far, the newest included; read only where ``momentum`` is None.

    Returns:
        ``momentum``; else one over ``batches_seen`` (0 where batches are not counted).
    """
    if momentum is not None:
        return momentum
    return 0.0 if batches_seen is None else 1.0 / float(batches_seen)


@torch.no_grad()
def track(
    running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, var: Tensor, count: int, momentum: float
) -> None:
    """Move the running statistics toward those of a batch, in place.

    Args:
        running_mean: Running mean ``(C,)``, or None.
        running_var: Running variance ``(C,)``, or None.
        mean: Mean of the batch, ``C`` values.
        var: Biased variance of the batch, ``C`` values; what is tracked is the unbiased one, as in torch.
        count: Values that each statistic of the batch is taken over; at least 2.
        momentum: Share of the batch in the result.
    """
    if running_mean is not None:
        running_mean.mul_(1 - momentum).add_(mean.detach().flatten().to(running_mean.dtype), alpha=momentum)
    if running_var is not None:
        unbiased = momentum * count / (count - 1)
        running_var.mul_(1 - momentum).add_(var.detach().flatten().to(running_var.dtype), alpha=unbiased)
