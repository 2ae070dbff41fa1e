"""What a call of a batch norm returned, told by the operation that made it."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.batchnorm import _BatchNorm

_EXACT = (torch.float32, torch.float64)  # a sum in half precision is too rough


def is_normalized(module: Module, output: Any) -> bool:
    """Whether ``output`` is what torch's own operation made of the module's input, with positions and not rounded.

    A hook or a ``forward`` that makes something else of it is seen by the operation that has made the output, and by
    the number of times that the output was written to.
    """
    return (
        type(module).forward is _BatchNorm.forward
        and "forward" not in vars(module)
        and type(output) is Tensor
        and output.ndim > 2
        and output.dtype in _EXACT
        and output._version == 0
        and type(output.grad_fn).__name__ == "NativeBatchNormBackward0"
    )


def sums_gradients(module: Module, output: Any) -> bool:
    """Whether the backward pass of ``output`` makes the gradients of gain and shift from the module's own input."""
    parts = (getattr(module, "weight", None), getattr(module, "bias", None))
    return is_normalized(module, output) and all(
        part is not None and part.requires_grad and part.dtype in _EXACT for part in parts
    )
