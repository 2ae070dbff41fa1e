"""What may stand between a linear layer and its activation: one factory an arm.

A factory takes the ``Place`` at which it stands and returns a module. Factories draw nothing from the stream of the
initial weights, so arms that differ in their factory share every weight.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from normscope import layers
from normscope.studies.lab.models import Place
from normscope.studies.lab.streams import stream

Factory = Callable[[Place], nn.Module]


def none() -> Factory:
    """Nothing between the linear layer and its activation."""
    return lambda place: nn.Identity()


def batch() -> Factory:
    """Batch normalization with trainable scale and shift."""
    return _batch


def after_relu(factory: Factory) -> Factory:
    """A rectifier, then a norm: for blocks whose own activation is ``"linear"``."""
    return lambda place: AfterRelu(factory(place))


def noisy_batch(
    seed: int, *, strength: float = 1.0, mean: bool = True, scale: bool = True, per_sample: bool = True
) -> Factory:
    """Batch normalization followed by the time-varying noise of Santurkar et al. 2018, Algorithm 1.

    Args:
        seed: Seed of the replicate; every place has a noise stream of its own.
        strength: Factor on the noise: 0 is plain batch normalization, 1 the noise of the source.
        mean: Whether the noise shifts.
        scale: Whether the noise scales.
        per_sample: Whether samples differ within a step; if not, all samples of a unit shift together.
    """

    def make(place: Place) -> nn.Module:
        noise = _noise(place, seed, strength=strength, mean=mean, scale=scale, per_sample=per_sample)
        return nn.Sequential(_batch(place), noise)

    return make


def noise_before_batch(seed: int, *, per_sample: bool = False) -> Factory:
    """The noise in front of batch normalization; if all samples shift together, normalization takes it out again."""
    return lambda place: nn.Sequential(_noise(place, seed, per_sample=per_sample), _batch(place))


def noise(seed: int, *, rescaled: bool = False) -> Factory:
    """The noise without normalization.

    Args:
        seed: Seed of the replicate.
        rescaled: Whether the noise is measured in standard deviations of what it is added to. The noise of the source
            is absolute, which is a larger disturbance where activations are small.
    """

    def make(place: Place) -> nn.Module:
        inner = _noise(place, seed)
        return Rescaled(inner) if rescaled else inner

    return make


def lp(p: float) -> Factory:
    """Mean-centring and division by the average lp norm (Santurkar et al. 2018, section 3.3), ``p`` 1, 2 or inf."""
    return lambda place: layers.LpNorm(place.features, p=p)


def detached(*, mean: bool, variance: bool) -> Factory:
    """Batch normalization whose backward pass takes batch statistics for constants.

    Args:
        mean: Whether the mean is taken for a constant.
        variance: Whether the variance is taken for a constant.
    """
    return lambda place: DetachedBatchNorm(place.features, mean=mean, variance=variance)


class AfterRelu(nn.Module):
    """A rectifier, then a norm: what stands in a block whose own activation is the identity."""

    stackable = True

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Apply the two in turn."""
        out: Tensor = self.norm(nn.functional.relu(x))
        return out


class Rescaled(nn.Module):
    """Applies a module to its input in units of the input's standard deviation per channel, ``f(x / s) * s``.

    The standard deviation, over the batch and the positions, is taken for a constant in the backward pass.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` of shape (N, C, *) to the same shape; the identity in eval mode if ``inner`` is."""
        axes = [0, *range(2, x.dim())]
        spread = x.detach().var(axes, correction=0, keepdim=True).add(1e-5).sqrt()
        out: Tensor = self.inner(x / spread) * spread
        return out


class DetachedBatchNorm(nn.BatchNorm1d):
    """Batch normalization in train mode with chosen statistics cut out of the backward pass.

    With both cut, the input gradient is ``weight / sigma * upstream gradient``: the rule that leaves out the terms
    through the mean and the variance. Forward values and running statistics are those of batch normalization.
    """

    def __init__(self, num_features: int, *, mean: bool, variance: bool) -> None:
        super().__init__(num_features)
        self.cut_mean = mean
        self.cut_variance = variance

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``input`` of shape (N, C, *) over N and *."""
        if not self.training:
            return nn.functional.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        axes = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        mean = input.mean(axes, keepdim=True)
        # The variance is about the true mean; its derivative with respect to that mean is zero, so cutting the mean
        # out below does not change what flows through the variance.
        variance = (input - mean).square().mean(axes, keepdim=True)
        if self.running_mean is not None and self.running_var is not None:
            count = input.numel() // input.shape[1]
            with torch.no_grad():
                if self.num_batches_tracked is not None:
                    self.num_batches_tracked += 1
                rate = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked or 1)
                self.running_mean.lerp_(mean.detach().flatten(), rate)
                self.running_var.lerp_(variance.detach().flatten() * (count / max(count - 1, 1)), rate)
        if self.cut_mean:
            mean = mean.detach()
        if self.cut_variance:
            variance = variance.detach()
        normalized = (input - mean) * (variance + self.eps).rsqrt()
        return normalized * self.weight.view(shape) + self.bias.view(shape)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept (N, C) and (N, C, *)."""


def _batch(place: Place) -> nn.Module:
    return layers.BatchNorm2d(place.features) if place.spatial else layers.BatchNorm1d(place.features)


def _noise(
    place: Place,
    seed: int,
    *,
    strength: float = 1.0,
    mean: bool = True,
    scale: bool = True,
    per_sample: bool = True,
) -> nn.Module:
    return layers.TimeVaryingNoise(
        place.features,
        strength=strength,
        mean=mean,
        scale=scale,
        per_sample=per_sample,
        seed=stream(seed, f"noise:{place.index}"),
    )
