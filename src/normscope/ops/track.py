"""Running statistics: what a batch norm remembers of its batches for the time it sees none."""

import torch
from torch import Tensor


def share_of_batch(momentum: float | None, batches_before: Tensor | None) -> float:
    """Return the share that the newest batch gets in the running statistics.

    Args:
        momentum: That share, or None for the plain average of all batches.
        batches_before: Batches tracked before this one; read only where ``momentum`` is None.

    Returns:
        ``momentum``; else one over the number of batches (0 where they are not counted).
    """
    if momentum is not None:
        return momentum
    return 0.0 if batches_before is None else 1.0 / (float(batches_before) + 1.0)


def track(running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, var: Tensor, momentum: float) -> None:
    """Move the running statistics toward those of a batch, in place.

    Args:
        running_mean: Running mean ``(C,)``, or None.
        running_var: Running variance ``(C,)``, or None.
        mean: Mean of the batch ``(C,)``.
        var: Unbiased variance of the batch ``(C,)``: what torch tracks.
        momentum: Share of the batch in the result.
    """
    with torch.no_grad():
        for running, batch in ((running_mean, mean), (running_var, var)):
            if running is not None:
                # Not lerp_, for which vmap has no rule.
                running.mul_(1 - momentum).add_(batch.to(running.dtype), alpha=momentum)
