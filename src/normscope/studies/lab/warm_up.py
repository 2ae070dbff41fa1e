"""Adam whose learning rate rises over the first steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class WarmAdam(torch.optim.Adam):
    """Adam with a linear warm-up: step t of ``warmup`` is taken at t/``warmup`` of the learning rate.

    Args:
        parameters: What is trained.
        lr: Learning rate behind the warm-up.
        warmup: Number of steps of the warm-up; 0 for none.
        options: Other arguments of ``torch.optim.Adam``; its fused kernel is used if nothing else is asked for.
    """

    def __init__(self, parameters: Any, lr: float, *, warmup: int = 0, **options: Any) -> None:
        super().__init__(parameters, lr=lr, **{"fused": True, **options})
        self.full, self.warmup, self.taken = lr, warmup, 0

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step at the rate that is due."""
        self.taken += 1
        for group in self.param_groups:
            group["lr"] = self.full * min(1.0, self.taken / self.warmup) if self.warmup else self.full
        return super().step(closure)


def warm_adam(lr: float, *, warmup: int = 0, **options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    """Return what makes a ``WarmAdam`` of a network's parameters, as ``lab.train.train`` takes it."""
    return lambda model: WarmAdam(model.parameters(), lr, warmup=warmup, **options)
