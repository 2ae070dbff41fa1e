"""One number for a whole tensor: the scale or shift of residual branches without normalization."""

import torch
from torch import Tensor
from torch.nn import Parameter

from normscope.layers._layer import AbstractLayer


class ScalarGain(AbstractLayer):
    r"""Scalar gain: the whole tensor times one number.

    ## Formula
    $y = \alpha x$.

    ## Statistics
    None are taken.

    ## Invariances
    None; linear in the input. At $\alpha = 0$ the branch that ends in it is silent and receives no gradient, and
    $\alpha$ itself receives the correlation of the branch's output with the gradient.

    Args:
        init: $\alpha$ at first.
        learn: Whether $\alpha$ is a parameter; else it is a buffer.
    """

    CODE = "scalar_gain"
    SOURCES = ("arXiv:2002.10444 section 4 (SkipInit)", "arXiv:2003.04887 section 3 (ReZero)", "arXiv:1901.09321")

    value: Tensor

    def __init__(self, init: float = 1.0, *, learn: bool = True) -> None:
        super().__init__()
        value = torch.full((), float(init))
        if learn:
            self.value = Parameter(value)
        else:
            self.register_buffer("value", value)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply a tensor of any shape; the result has its type."""
        return input * self.value

    def extra_repr(self) -> str:
        """Show whether the number is learned."""
        return f"learn={isinstance(self.value, Parameter)}"


class ScalarBias(AbstractLayer):
    r"""Scalar bias: the whole tensor plus one number, 0 at first.

    ## Formula
    $y = x + b$.

    ## Statistics
    None are taken.

    ## Invariances
    None; the gradient at the input is that at the output.
    """

    CODE = "scalar_bias"
    SOURCES = ("arXiv:1901.09321 section 3",)

    def __init__(self) -> None:
        super().__init__()
        self.value = Parameter(torch.zeros(()))

    def forward(self, input: Tensor) -> Tensor:
        """Shift a tensor of any shape; the result has its type."""
        return input + self.value
