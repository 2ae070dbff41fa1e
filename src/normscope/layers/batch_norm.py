r"""Batch normalization (Ioffe & Szegedy, 2015): one layer, three ranks of input."""

import torch

from normscope.layers._batch_norm import AbstractBatchNorm


class BatchNorm1d(AbstractBatchNorm, torch.nn.BatchNorm1d):
    r"""Batch normalization of vectors ``(N, C)`` or sequences ``(N, C, L)``.

    ## Formula
    $y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$, a $\gamma$ and a $\beta$ per channel.

    ## Statistics
    In training the mean and biased variance of the channel over the batch ``N`` and, if present, the length ``L``;
    outside it their running averages (of the unbiased variance). float32 or wider whatever the input, and right where
    a mean is large beside its standard deviation.

    ## Invariances
    In training: adding a constant to a channel, and scaling it by a positive number while its variance is large beside
    ``eps``; hence the bias of the layer before it has no effect and the scale of its weight none on the function.
    The gradient at the input sums to zero over each channel and is orthogonal to it.

    A ``torch.nn.BatchNorm1d`` with the same arguments, state dict and numbers; and with options, by keyword, that
    ``BatchNormOptions`` describes: which set the statistics come from (ghost, synchronised, renormalised,
    masked, given), when running statistics are used and moved, a fused activation, and less memory.

    Args:
        num_features: Channels ``C``.
        eps: Added to the variance, in squared units of the input.
        momentum: Share of the newest batch in the running statistics; None for the average over all batches.
        affine: Whether there are a gain (``weight``) and a shift (``bias``) to learn.
        track_running_stats: Whether running statistics are kept; without them each batch has its own, in eval too.
        device: Where parameters and buffers live.
        dtype: Their type.
        bias: With ``affine``, whether there is a shift; the other options likewise by keyword.
    """

    CODE = "batch_norm_1d"
    SOURCES = ("arXiv:1502.03167 section 3",)


class BatchNorm2d(AbstractBatchNorm, torch.nn.BatchNorm2d):
    r"""Batch normalization of images ``(N, C, H, W)``.

    ## Formula
    $y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$, a $\gamma$ and a $\beta$ per channel.

    ## Statistics
    In training the mean and biased variance of the channel over the batch ``N`` and all positions ``H, W``; outside it
    their running averages (of the unbiased variance). float32 or wider whatever the input, and right where a mean is
    large beside its standard deviation, contiguous or channels-last.

    ## Invariances
    In training: adding a constant to a channel, and scaling it by a positive number while its variance is large beside
    ``eps``; hence the bias of the convolution before it has no effect and the scale of its filter none on the function.
    The gradient at the input sums to zero over each channel and is orthogonal to it.

    A ``torch.nn.BatchNorm2d`` with the same arguments, state dict and numbers; and with options, by keyword, that
    ``BatchNormOptions`` describes: which set the statistics come from (ghost, synchronised, renormalised,
    masked, given), when running statistics are used and moved, a fused activation, and less memory.

    Args:
        num_features: Channels ``C``.
        eps: Added to the variance, in squared units of the input.
        momentum: Share of the newest batch in the running statistics; None for the average over all batches.
        affine: Whether there are a gain (``weight``) and a shift (``bias``) to learn.
        track_running_stats: Whether running statistics are kept; without them each batch has its own, in eval too.
        device: Where parameters and buffers live.
        dtype: Their type.
        bias: With ``affine``, whether there is a shift; the other options likewise by keyword.
    """

    CODE = "batch_norm_2d"
    SOURCES = ("arXiv:1502.03167 section 3.2",)


class BatchNorm3d(AbstractBatchNorm, torch.nn.BatchNorm3d):
    r"""Batch normalization of volumes ``(N, C, D, H, W)``.

    ## Formula
    $y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$, a $\gamma$ and a $\beta$ per channel.

    ## Statistics
    In training the mean and biased variance of the channel over the batch ``N`` and all positions ``D, H, W``; outside
    it their running averages (of the unbiased variance). float32 or wider whatever the input, and right where a mean
    is large beside its standard deviation, contiguous or channels-last.

    ## Invariances
    In training: adding a constant to a channel, and scaling it by a positive number while its variance is large beside
    ``eps``; hence the bias of the convolution before it has no effect and the scale of its filter none on the function.
    The gradient at the input sums to zero over each channel and is orthogonal to it.

    A ``torch.nn.BatchNorm3d`` with the same arguments, state dict and numbers; and with options, by keyword, that
    ``BatchNormOptions`` describes: which set the statistics come from (ghost, synchronised, renormalised,
    masked, given), when running statistics are used and moved, a fused activation, and less memory.

    Args:
        num_features: Channels ``C``.
        eps: Added to the variance, in squared units of the input.
        momentum: Share of the newest batch in the running statistics; None for the average over all batches.
        affine: Whether there are a gain (``weight``) and a shift (``bias``) to learn.
        track_running_stats: Whether running statistics are kept; without them each batch has its own, in eval too.
        device: Where parameters and buffers live.
        dtype: Their type.
        bias: With ``affine``, whether there is a shift; the other options likewise by keyword.
    """

    CODE = "batch_norm_3d"
    SOURCES = ("arXiv:1502.03167 section 3.2",)
