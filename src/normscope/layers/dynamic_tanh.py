r"""Dynamic tanh (Zhu et al., 2025), a layer in the place of layer norm that takes no statistics."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from normscope._errors import UsageError, shown
from normscope.layers._layer import AbstractLayer
from normscope.ops import dynamic_tanh


class DynamicTanh(AbstractLayer):
    r"""Dynamic tanh: each value by itself through a hyperbolic tangent whose steepness is learned.

    ## Formula
    $y = \gamma \tanh(\alpha x) + \beta$, one $\alpha$ for the layer, a $\gamma$ and a $\beta$ for each element of
    ``normalized_shape``.

    ## Statistics
    None are taken, in training and outside it: a value's output does not depend on the others. Computed in float32 or
    wider whatever the input.

    ## Invariances
    None under scaling or adding a constant: values that are small beside $1/\alpha$ pass in proportion, large values
    come out as plus or minus $\gamma$, and the gradient of a large value is near 0. The output lies within $|\gamma|$
    of $\beta$. Permuting the elements of a sample permutes the output where there is no gain and shift.

    Takes the place of a ``torch.nn.LayerNorm``: ``normalized_shape``, ``weight`` and ``bias`` are the same, ``alpha``
    (shape ``(1,)``, as in the paper's code) is new, and there is no ``eps``.

    Args:
        normalized_shape: Sizes of the last axes, which gain and shift have.
        alpha: $\alpha$ at first, in inverse units of the input; not 0.
        elementwise_affine: Whether there is a gain (``weight``) to learn.
        bias: Whether there is a shift (``bias``) too.
        device: Where parameters live.
        dtype: Their type.

    Raises:
        UsageError: ``normalized_shape`` is empty or has a size below 1, or ``alpha`` is 0 or not finite.
    """

    CODE = "dynamic_tanh"
    SOURCES = ("arXiv:2503.10622",)

    alpha: Parameter
    weight: Parameter | None
    bias: Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        *,
        alpha: float = 0.5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = normalized_shape if isinstance(normalized_shape, Sequence) else (normalized_shape,)
        shape = tuple(map(int, sizes))
        if not shape or any(size < 1 for size in shape):
            raise UsageError(f"normalized_shape is one size or several, each 1 or more, not {shown(normalized_shape)}")
        if not math.isfinite(alpha) or alpha == 0:
            raise UsageError(f"alpha is the slope at 0 that training begins with: give a number but 0, not {alpha}")
        self.normalized_shape = shape
        self.elementwise_affine = elementwise_affine
        made = {"device": device, "dtype": dtype}
        self.alpha = Parameter(torch.full((1,), float(alpha), **made))  # type: ignore[arg-type]
        self.weight = Parameter(torch.ones(shape, **made)) if elementwise_affine else None  # type: ignore[arg-type]
        shifts = elementwise_affine and bias
        self.bias = Parameter(torch.zeros(shape, **made)) if shifts else None  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        """Squash each value.

        Args:
            input: Values ``(*, normalized_shape)``.

        Returns:
            The squashed values in the type and shape of ``input``.

        Raises:
            ShapeError: The last axes are not of ``normalized_shape``.
        """
        if not isinstance(input, Tensor):
            return self.recorded(input)
        return dynamic_tanh(input, self.normalized_shape, self.alpha, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Show the options."""
        shift = f", bias={self.bias is not None}" if self.elementwise_affine else ""
        return f"{self.normalized_shape}, elementwise_affine={self.elementwise_affine}{shift}"
