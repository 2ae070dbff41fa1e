"""The three ways in which the gradient reaches the input of a batch, layer or RMS norm."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from normscope.ops.normalize import standardize
from normscope.ops.shapes import check_trailing
from normscope.ops.statistics import channel_axes, channelwise, wide


class GradientTerms(NamedTuple):
    """Three tensors of the shape of the input, whose sum is the exact input gradient.

    Angle brackets are means over the statistics set: of a channel over the batch (batch norm), of a sample over its
    features (layer and RMS norm). ``r`` is the reciprocal standard deviation, or root mean square, of the set.

    Attributes:
        rescale: Past the statistics, as if they were constants: ``r * (weight * grad)``.
        mean_coupling: Through the mean of the set: ``-r * <weight * grad>``; one value a set, expanded. Zero in RMS
            norm, which takes no mean.
        variance_coupling: Through the variance, or mean square, of the set: ``-r * xhat * <xhat * weight * grad>``.
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


def layer_norm_backward_terms(
    grad: Tensor, x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float = 1e-5
) -> GradientTerms:
    """Split the input gradient of a layer norm into its three terms.

    They are the terms of batch norm, with the features of a sample in place of the samples of a batch; Xu et al. (2019)
    train without the second and the third. The gain belongs to a feature, so it stands inside the means.

    Args:
        grad: Gradient at the output ``(*, normalized_shape)``.
        x: Input ``(*, normalized_shape)``.
        normalized_shape: Sizes of the last axes, whose values share one mean and one variance.
        weight: Gain of each of their elements, or None for 1.
        eps: Added to the variance, in squared units of ``x``.

    Returns:
        The terms, float32 or wider; each is differentiable in ``grad``, ``x`` and ``weight``.

    Raises:
        ShapeError: The last axes of ``x``, or the weight, are not of ``normalized_shape``; ``x`` is not floating.

    Example:
        >>> import torch
        >>> x, grad = torch.randn(8, 30), torch.randn(8, 30)
        >>> terms = layer_norm_backward_terms(grad, x, (30,))
        >>> torch.allclose(terms.total().sum(1), torch.zeros(8), atol=1e-5)  # moves no sample's mean
        True
    """
    check_trailing(x, normalized_shape, weight)
    axes = tuple(range(-len(normalized_shape), 0))
    xhat, rstd = standardize(x.to(wide(x.dtype)), axes, eps)
    return _per_sample(grad, xhat, rstd, weight, axes, centred=True)


def rms_norm_backward_terms(
    grad: Tensor, x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> GradientTerms:
    """Split the input gradient of an RMS norm (Zhang & Sennrich, 2019, eq. 4) into its terms, of which it has two.

    Args:
        grad: Gradient at the output ``(*, normalized_shape)``.
        x: Input ``(*, normalized_shape)``.
        normalized_shape: Sizes of the last axes, whose values share one root mean square.
        weight: Gain of each of their elements, or None for 1.
        eps: Added to the mean square, in squared units of ``x``; None for the spacing at 1 of the terms' type.

    Returns:
        The terms, float32 or wider, ``mean_coupling`` zero; each is differentiable in ``grad``, ``x`` and ``weight``.

    Raises:
        ShapeError: The last axes of ``x``, or the weight, are not of ``normalized_shape``; ``x`` is not floating.

    Example:
        >>> import torch
        >>> x, grad = torch.randn(8, 30), torch.randn(8, 30)
        >>> terms = rms_norm_backward_terms(grad, x, (30,))
        >>> torch.allclose((terms.total() * x).sum(1), torch.zeros(8), atol=1e-4)  # moves no sample's size
        True
    """
    check_trailing(x, normalized_shape, weight)
    axes = tuple(range(-len(normalized_shape), 0))
    x = x.to(wide(x.dtype))
    power = x.square().mean(axes, keepdim=True)
    rstd = (power + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    return _per_sample(grad, x * rstd, rstd, weight, axes, centred=False)


def _per_sample(
    grad: Tensor, xhat: Tensor, rstd: Tensor, weight: Tensor | None, axes: tuple[int, ...], *, centred: bool
) -> GradientTerms:
    onto_xhat = grad.to(xhat.dtype)
    if weight is not None:
        onto_xhat = onto_xhat * weight
    along_mean = (-rstd * onto_xhat.mean(axes, keepdim=True)).expand_as(xhat)
    return GradientTerms(
        rescale=rstd * onto_xhat,
        mean_coupling=along_mean if centred else torch.zeros_like(xhat),
        variance_coupling=-rstd * xhat * (onto_xhat * xhat).mean(axes, keepdim=True),
    )
