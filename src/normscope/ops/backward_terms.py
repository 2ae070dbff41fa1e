"""The three ways in which the gradient reaches the input of a batch norm."""

from typing import NamedTuple

from torch import Tensor

from normscope.ops.normalize import standardize
from normscope.ops.statistics import channel_axes, channelwise, wide


class GradientTerms(NamedTuple):
    """Three tensors of the shape of the input, whose sum is the exact input gradient.

    Attributes:
        rescale: Past the statistics, as if they were constants: ``weight * rstd * grad``.
        mean_coupling: Through the mean of the batch: ``-weight * rstd * <grad>``; one value a channel, expanded.
        variance_coupling: Through the variance of the batch: ``-weight * rstd * xhat * <xhat * grad>``.
    """

    rescale: Tensor
    mean_coupling: Tensor
    variance_coupling: Tensor

    def total(self) -> Tensor:
        """Return the input gradient, the sum of the three."""
        return self.rescale + self.mean_coupling + self.variance_coupling


def batch_norm_backward_terms(
    grad: Tensor, x: Tensor, weight: Tensor | None = None, eps: float = 1e-5
) -> GradientTerms:
    """Split the input gradient of a batch norm in training into its three terms.

    Santurkar et al. (2018), fact C.1, has them in one formula; the first alone is wrong by the other two.

    Args:
        grad: Gradient at the output ``(N, C, *)``.
        x: Input ``(N, C, *)``.
        weight: Gain of each channel ``(C,)``, or None for 1.
        eps: Added to the variance, in squared units of ``x``.

    Returns:
        The terms, float32 or wider; each is differentiable in ``grad``, ``x`` and ``weight``.

    Example:
        >>> import torch
        >>> x, grad = torch.randn(8, 3), torch.randn(8, 3)
        >>> terms = batch_norm_backward_terms(grad, x)
        >>> torch.allclose(terms.total().sum(0), torch.zeros(3), atol=1e-5)  # moves no channel's mean
        True
    """
    axes = channel_axes(x)
    xhat, rstd = standardize(x.to(wide(x.dtype)), axes, eps)
    scale = rstd if weight is None else rstd * channelwise(weight, x)
    return GradientTerms(
        rescale=scale * grad,
        mean_coupling=(-scale * grad.mean(axes, keepdim=True)).expand_as(xhat),
        variance_coupling=-scale * xhat * (grad * xhat).mean(axes, keepdim=True),
    )
