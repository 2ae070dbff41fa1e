"""The way by which a batch norm of given tensors is computed: each way offers the same two functions."""

from typing import Protocol

from torch import Tensor

from normscope.ops.moments import Moments
from normscope.ops.ways import kernel, torchs
from normscope.ops.ways.choose import wants_written_out, why_no_kernel


class WayOfComputing(Protocol):
    """What a way offers: modules of this folder do."""

    def batch_norm(
        self,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        activation: str | None,
        slope: float,
        running: tuple[Tensor, Tensor] | None,
        share: float,
        seen: Tensor | None,
    ) -> Tensor:
        """Normalize by the statistics of the batch, scale, shift and activate; move running statistics."""

    def normalize(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Moments]:
        """Normalize by the statistics of the batch, scale and shift; return the moments of the batch too."""


def way_of(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running: tuple[Tensor, Tensor] | None = None,
    *,
    moments: bool = False,
) -> WayOfComputing:
    """Return the kernel where it takes these tensors here and now, else torch's way.

    Args:
        x: Values ``(N, C, *)``.
        weight: Gain ``(C,)`` or None.
        bias: Shift ``(C,)`` or None.
        running: Running mean and variance ``(C,)`` or None.
        moments: Whether the moments are wanted, which the GPU's kernel does not return.
    """
    if wants_written_out() or (moments and not x.is_cpu) or why_no_kernel(x, weight, bias, running):
        return torchs
    return kernel
