r"""Batch renormalization (Ioffe, 2017): the batch's statistics, corrected toward the running ones.

$$y = \gamma (\hat x\, r + d) + \beta, \qquad
r = \mathrm{clip}_{[1/r_{max},\, r_{max}]}(\sigma_B / \sigma), \qquad
d = \mathrm{clip}_{[-d_{max},\, d_{max}]}((\mu_B - \mu) / \sigma) ,$$

with $\sigma = \sqrt{v + \epsilon}$ of the running variance $v$. $r$ and $d$ are constants to
the gradient. Where neither is clipped the output in training is the output in evaluation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from normscope._errors import UsageError
from normscope.ops.moments import Moments


@dataclass(frozen=True, slots=True)
class Renorm:
    """How far batch renormalization may correct, by the number of updates made so far.

    Both bounds are those of batch norm (1 and 0) up to the first step of their pair, those given here from the second
    on, and on the straight line between: Ioffe (2017), section 4.1. They never exceed what is given.

    Attributes:
        r_max: Bound on the ratio of standard deviations, at least 1.
        d_max: Bound on the difference of the means, in running standard deviations, at least 0.
        r_steps: Updates at which the ratio's bound begins to rise, and has risen.
        d_steps: The same for the difference's.
    """

    r_max: float = 3.0
    d_max: float = 5.0
    r_steps: tuple[int, int] = (5_000, 40_000)
    d_steps: tuple[int, int] = (5_000, 25_000)

    def __post_init__(self) -> None:
        """Refuse bounds that no correction can satisfy."""
        if self.r_max < 1 or self.d_max < 0:
            raise UsageError(f"r_max is at least 1 and d_max at least 0: got {self.r_max} and {self.d_max}")
        for name, (start, end) in (("r_steps", self.r_steps), ("d_steps", self.d_steps)):
            if not 0 <= start <= end:
                raise UsageError(f"{name} are two update counts, the first not above the second: got {(start, end)}")

    def bounds(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bounds on ratio and difference.

        Args:
            step: How many updates the running statistics have had, a whole number ``()``.

        Returns:
            ``r_max`` and ``d_max`` at this step, float32 ``()``.
        """
        return 1 + (self.r_max - 1) * _risen(step, self.r_steps), self.d_max * _risen(step, self.d_steps)

    def correction(
        self, moments: Moments, running_mean: Tensor, running_var: Tensor, step: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        """Return the ratio and the difference, clipped.

        Args:
            moments: Of the batch, ``(C,)``.
            running_mean: Running mean ``(C,)``, before this batch.
            running_var: Running variance ``(C,)``, likewise.
            step: How many updates the running statistics have had.
            eps: Added to both variances.

        Returns:
            ``r`` and ``d`` ``(C,)`` in the type of the moments, constants to autograd.
        """
        moments = moments.detach()
        dtype = moments.mean.dtype
        r_max, d_max = (bound.to(dtype) for bound in self.bounds(step))
        std = (running_var.to(dtype) + eps).sqrt()
        r = (moments.variance() + eps).sqrt() / std
        d = ((moments.mean - running_mean.to(dtype)) + moments.low) / std
        return torch.clamp(r, 1 / r_max, r_max), torch.clamp(d, -d_max, d_max)


def _risen(step: Tensor, steps: tuple[int, int]) -> Tensor:
    start, end = steps
    if start == end:
        return (step >= start).to(torch.float32)
    return ((step - start) / (end - start)).clamp(0.0, 1.0).to(torch.float32)
