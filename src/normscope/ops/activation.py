"""Activations that follow a norm."""

import torch
from torch import Tensor

from normscope.ops.ways.choose import is_written_out


def activate(y: Tensor, activation: str | None, slope: float, *, own: bool = True) -> Tensor:
    """Apply ReLU, leaky ReLU or nothing, in the memory of the values where that is allowed.

    Args:
        y: Values.
        activation: ``"relu"``, ``"leaky_relu"`` or None.
        slope: Of leaky ReLU below 0.
        own: Whether nobody else holds ``y``, so that it may be overwritten.
    """
    if activation is None:
        return y
    own = own and not is_written_out()
    if activation == "relu":
        return torch.relu_(y) if own else torch.relu(y)
    return torch.nn.functional.leaky_relu(y, slope, inplace=own)
