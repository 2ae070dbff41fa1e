r"""Dynamic tanh: a hyperbolic tangent in the place of a norm (Zhu et al., 2025)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from normscope.ops.rows import columnwise
from normscope.ops.shapes import ShapeError, check_trailing
from normscope.ops.statistics import wide


def dynamic_tanh(
    x: Tensor,
    normalized_shape: Sequence[int],
    alpha: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    r"""Return $\gamma \tanh(\alpha x) + \beta$, each element by itself. Zhu et al. (2025).

    Args:
        x: Values whose last axes are ``normalized_shape``, of any floating type; computed in float32 or wider.
        normalized_shape: Sizes of the axes that gain and shift have.
        alpha: One number, in inverse units of ``x``.
        weight: Gain of each element of ``normalized_shape``, or None for 1.
        bias: Shift of each of them, or None for 0.

    Returns:
        The values in the type and shape of ``x``; differentiable to any order.

    Raises:
        ShapeError: The last axes of ``x``, or a parameter, are not of ``normalized_shape``; ``x`` is not floating;
            ``alpha`` is not one number.

    Example:
        >>> import torch
        >>> dynamic_tanh(torch.tensor([0.0, 100.0]), (2,), torch.tensor(0.5))
        tensor([0., 1.])
    """
    check_trailing(x, normalized_shape, weight, bias)
    if alpha.numel() != 1:
        raise ShapeError(f"alpha is one number for all values, got shape {tuple(alpha.shape)}")
    dtype = wide(x.dtype)
    values = torch.tanh(x.to(dtype) * alpha.reshape(()).to(dtype))
    return columnwise(values, *(None if p is None else p.to(dtype) for p in (weight, bias))).to(x.dtype)
