"""Whether a network is as it was made: by its buffers, and where they do not tell, by what its weights do."""

import math
import statistics
from collections.abc import Mapping
from typing import Any

import torch

from normscope._errors import NormscopeError
from normscope.evidence.case import Case
from normscope.evidence.losses import mean_loss
from normscope.evidence.sandbox import sandbox

_SHUFFLES, _SHARE, _BATCHES = 7, 0.2, 2


def as_made(norms: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether all norms hold the buffers of a new layer: running mean 0, running variance 1, and a count of 0.

    Gains and shifts do not matter: they may be drawn, as gains of N(1, 0.02), begin at another value, or be absent.

    Args:
        norms: By name of a norm its tensors by name, as a state dict holds them.
    """

    def initial(name: str, tensor: Any) -> bool:
        if name == "running_var":
            return bool((tensor == 1).all())
        return name not in ("running_mean", "num_batches_tracked") or not bool(tensor.any())

    return all(initial(name, tensor) for kept in norms.values() for name, tensor in kept.items())


def shifts_differ(norms: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the shift of a norm differs from channel to channel: schemes of initialization draw gains, not shifts."""
    shifts = [kept["bias"] for kept in norms.values() if kept.get("bias") is not None]
    return any(bool((shift != shift.flatten()[0]).any()) for shift in shifts if shift.numel())


def has_learnt(case: Case) -> bool:
    """Whether the loss of training is lower than it is with the numbers of each parameter in another order.

    New weights are drawn independently, so that any other order of theirs is as good. Learnt ones depend on it. The
    loss has to be lower than the mean over seven orders by four of their standard deviations (Student's t at 6 degrees
    of freedom: by chance in 4 of 1000) and by 5 %.

    Raises:
        UsageError: The loader or the loss raises.
    """
    with sandbox(case):
        now = mean_loss(case, case.loader, _BATCHES)
    others = [_shuffled_loss(case, seed) for seed in range(_SHUFFLES)]
    lowest, median = min(others), statistics.median(others)
    return lowest - now > max(median - lowest, _SHARE * abs(median))


@torch.no_grad()
def _shuffled_loss(case: Case, seed: int) -> float:
    stream = torch.Generator().manual_seed(seed)
    with sandbox(case):
        for parameter in case.model.parameters():
            order = torch.randperm(parameter.numel(), generator=stream).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
        try:
            return mean_loss(case, case.loader, _BATCHES)
        except NormscopeError:
            return math.inf
