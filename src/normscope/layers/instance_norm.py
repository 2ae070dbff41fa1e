r"""Instance normalization (Ulyanov, Vedaldi & Lempitsky, 2016): one layer, three ranks of input."""

import torch
from torch import Tensor
from torch.nn.modules.instancenorm import _InstanceNorm

from normscope.layers._layer import AbstractLayer
from normscope.ops import ShapeError, instance_norm
from normscope.ops.statistics import wide
from normscope.ops.track import share_of_batch


class AbstractInstanceNorm(AbstractLayer, _InstanceNorm):
    """Torch's parameters, buffers and state dict; the numbers come from ``normscope.ops``."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each channel of each sample.

        Args:
            input: Values ``(N, C, *)``, or ``(C, *)`` for one sample.

        Returns:
            The normalized values in the type, shape and layout of ``input``.

        Raises:
            ShapeError: Not ``num_features`` channels; or, where samples have statistics of their own, one value a
                channel.
            ValueError: Not the number of axes that this layer takes.
        """
        if not isinstance(input, Tensor):
            return self.recorded(input)
        self._check_input_dim(input)
        single = input.dim() == self._get_no_batch_dim()
        x = input.unsqueeze(0) if single else input
        # Torch only warns where there is no gain to give a channel too many or too few.
        if x.shape[1] != self.num_features:
            raise ShapeError(f"expected {self.num_features} channels, got {x.shape[1]} in shape {tuple(input.shape)}")
        own = self.training or not self.track_running_stats
        seen = self.num_batches_tracked if self.training and self.track_running_stats else None
        y = instance_norm(
            x,
            self.weight,
            self.bias,
            eps=self.eps,
            running_mean=self.running_mean if self.track_running_stats else None,
            running_var=self.running_var if self.track_running_stats else None,
            use_input_stats=own,
            momentum=share_of_batch(self.momentum, seen, wide(x.dtype)),
        )
        if seen is not None:
            seen.add_(1)
        return y.squeeze(0) if single else y


class InstanceNorm1d(AbstractInstanceNorm, torch.nn.InstanceNorm1d):
    r"""Instance normalization of sequences ``(N, C, L)``.

    ## Formula
    $y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$, a $\gamma$ and a $\beta$ per channel.

    ## Statistics
    Mean and biased variance of each channel of each sample over the length ``L``, in training and outside it, unless
    ``track_running_stats``: then outside it running averages of the samples' means and unbiased variances. float32 or
    wider whatever the input, and right where a mean is large beside its standard deviation.

    ## Invariances
    For each channel of each sample by itself: adding a constant, and scaling by a positive number while its variance is
    large beside ``eps``. Hence adding a constant to a sample or to a channel, and scaling either. Permuting the
    positions of a sample permutes the output.

    A ``torch.nn.InstanceNorm1d`` with the same arguments, state dict and numbers, but that batches are counted where
    torch leaves ``num_batches_tracked`` at 0, that ``momentum=None`` averages all batches as in batch norm where torch
    then never moves the running statistics, and that a wrong number of channels is always an error.

    Args:
        num_features: Channels ``C``.
        eps: Added to the variance, in squared units of the input.
        momentum: Share of the newest batch in the running statistics; None for the average over all batches.
        affine: Whether there are a gain (``weight``) and a shift (``bias``) to learn.
        track_running_stats: Whether running statistics are kept, and used outside training.
        device: Where parameters and buffers live.
        dtype: Their type.
    """

    CODE = "instance_norm_1d"
    SOURCES = ("arXiv:1607.08022 section 2",)


class InstanceNorm2d(AbstractInstanceNorm, torch.nn.InstanceNorm2d):
    r"""Instance normalization of images ``(N, C, H, W)``.

    ## Formula
    $y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$, a $\gamma$ and a $\beta$ per channel.

    ## Statistics
    Mean and biased variance of each channel of each sample over all positions, in training and outside it, unless
    ``track_running_stats``: then outside it running averages of the samples' means and unbiased variances. float32 or
    wider whatever the input, and right where a mean is large beside its standard deviation.

    ## Invariances
    For each channel of each sample by itself: adding a constant, and scaling by a positive number while its variance is
    large beside ``eps``. Hence adding a constant to a sample or to a channel, and scaling either. Permuting the
    positions of a sample permutes the output.

    A ``torch.nn.InstanceNorm2d`` with the exceptions of ``InstanceNorm1d``.

    Args:
        num_features: Channels ``C``.
        eps: Added to the variance, in squared units of the input.
        momentum: Share of the newest batch in the running statistics; None for the average over all batches.
        affine: Whether there are a gain (``weight``) and a shift (``bias``) to learn.
        track_running_stats: Whether running statistics are kept, and used outside training.
        device: Where parameters and buffers live.
        dtype: Their type.
    """

    CODE = "instance_norm_2d"
    SOURCES = ("arXiv:1607.08022 section 2",)


class InstanceNorm3d(AbstractInstanceNorm, torch.nn.InstanceNorm3d):
    r"""Instance normalization of volumes ``(N, C, D, H, W)``.

    ## Formula
    $y = \gamma (x - \mu) / \sqrt{\sigma^2 + \epsilon} + \beta$, a $\gamma$ and a $\beta$ per channel.

    ## Statistics
    Mean and biased variance of each channel of each sample over all positions, in training and outside it, unless
    ``track_running_stats``: then outside it running averages of the samples' means and unbiased variances. float32 or
    wider whatever the input, and right where a mean is large beside its standard deviation.

    ## Invariances
    For each channel of each sample by itself: adding a constant, and scaling by a positive number while its variance is
    large beside ``eps``. Hence adding a constant to a sample or to a channel, and scaling either. Permuting the
    positions of a sample permutes the output.

    A ``torch.nn.InstanceNorm3d`` with the exceptions of ``InstanceNorm1d``.

    Args:
        num_features: Channels ``C``.
        eps: Added to the variance, in squared units of the input.
        momentum: Share of the newest batch in the running statistics; None for the average over all batches.
        affine: Whether there are a gain (``weight``) and a shift (``bias``) to learn.
        track_running_stats: Whether running statistics are kept, and used outside training.
        device: Where parameters and buffers live.
        dtype: Their type.
    """

    CODE = "instance_norm_3d"
    SOURCES = ("arXiv:1607.08022 section 2",)
