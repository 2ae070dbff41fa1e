"""Lengths of gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor


def norm_of(gradient: Tensor) -> Tensor:
    """Return the length of a gradient, also of a sparse one, in float32 or wider."""
    if gradient.layout != torch.strided:
        gradient = gradient.coalesce().values()
    return torch.linalg.vector_norm(gradient, dtype=_wide(gradient))


def norms_of(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return the lengths of gradients, taken in one call where they are of one kind."""
    kinds = {(gradient.layout, gradient.dtype, gradient.device) for gradient in gradients}
    if len(kinds) != 1 or gradients[0].layout != torch.strided:
        return [norm_of(gradient) for gradient in gradients]
    return list(torch._foreach_norm(list(gradients), 2, dtype=_wide(gradients[0])))


def _wide(gradient: Tensor) -> torch.dtype:
    return torch.float64 if gradient.dtype == torch.float64 else torch.float32  # a half would overflow in the sum
