"""A shift of given size between a linear layer and its activation, and the size of the gradient that arrives there."""

import torch
from torch import Tensor, nn


class Shift(nn.Module):
    r"""Multiplies and moves each unit, the same for all samples: $\sqrt{1+\delta u}\,x + \delta z s$.

    s is the unit's standard deviation over the batch, a constant in the backward pass. In eval mode the identity.

    Args:
        features: Units.
        dose: $\delta$ in [0, 1].
        kept: Whether u and z are drawn once; if not, at every call in train mode.
        source: Of the draws.
    """

    def __init__(self, features: int, dose: float, *, kept: bool, source: torch.Generator) -> None:
        super().__init__()
        self._features, self._dose, self._source = features, dose, source
        self._kept = self._draw() if kept else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, features) to the same shape."""
        if not self.training or not self._dose:
            return x
        factor, offset = (part.to(x) for part in (self._kept if self._kept is not None else self._draw()))
        spread = x.detach().std(0, correction=0)
        return (1 + self._dose * factor).sqrt() * x + self._dose * offset * spread

    def _draw(self) -> tuple[Tensor, Tensor]:
        factor = 2 * torch.rand(self._features, generator=self._source) - 1
        return factor, torch.randn(self._features, generator=self._source)


def root_mean_square(output: Tensor | None) -> float:
    """Return the root mean square of an output's gradient; 0 where none arrived."""
    if output is None or output.grad is None:
        return 0.0
    return float(output.grad.double().square().mean().sqrt())
