r"""Noise whose distribution changes at every step (Santurkar et al., 2018, section 2.1, algorithm 1)."""

import torch
from torch import Tensor

from normscope._errors import UsageError
from normscope.layers._layer import AbstractLayer
from normscope.ops import ShapeError
from normscope.ops.statistics import channelwise

# The generator reads 32 bits of its seed. Streams start a golden-ratio stride apart there, so that the first thousand
# of them run for 4e6 steps before one meets another.
_STRIDE, _SEEDS = 0x9E3779B9, 2**32


class TimeVaryingNoise(AbstractLayer):
    r"""Time-varying noise: a covariate shift made on purpose.

    ## Formula
    At every training forward $a_{ij} \leftarrow s_{ij}\, a_{ij} + m_{ij}$, sample $i$, channel $j$:

    $$\mu_j \sim U(-n_\mu, n_\mu), \quad \sigma_j \sim U(1, n_\sigma), \quad
    m_{ij} \sim U(\mu_j - r_\mu, \mu_j + r_\mu), \quad s_{ij} \sim N(\sigma_j, r_\sigma).$$

    A ``strength`` $k$ other than 1 scales the deviation from no noise: $1 + k(s_{ij} - 1)$ and
    $k\, m_{ij}$. $r_\sigma$ is a standard deviation. Outside training the layer is the identity.

    ## Statistics
    None are taken. Positions count as samples: each gets noise of its own around its channel's $\mu_j, \sigma_j$.
    The noise is a function of ``seed`` and of the buffer ``draws``, the number of noisy forwards so far: restoring the
    buffers replays the same noise, on any device, and torch's global random state is neither read nor moved.

    ## Invariances
    Linear in the input given the noise. With ``per_sample=False`` a batch norm that follows directly cancels it.

    Args:
        num_features: Channels ``C``.
        mean_bound: $n_\mu$, in units of the input (standard deviations, after a batch norm).
        scale_bound: $n_\sigma$, at least 1.
        sample_mean_spread: $r_\mu$, in units of the input.
        sample_scale_spread: $r_\sigma$.
        seed: Names the stream of noise; two layers of one network should have two.
        strength: $k$; 0 for no noise, 1 as published.
        mean: Whether there is $m$; else it is 0.
        scale: Whether there is $s$; else it is 1.
        per_sample: Whether samples differ; else $m_{ij} = \mu_j$ and $s_{ij} = \sigma_j$, a pure shift.
    """

    CODE = "time_varying_noise"
    SOURCES = ("arXiv:1805.11604 section 2.1 and algorithm 1",)

    draws: Tensor

    def __init__(
        self,
        num_features: int,
        mean_bound: float = 0.5,
        scale_bound: float = 1.25,
        sample_mean_spread: float = 0.1,
        sample_scale_spread: float = 0.1,
        *,
        seed: int = 0,
        strength: float = 1.0,
        mean: bool = True,
        scale: bool = True,
        per_sample: bool = True,
    ) -> None:
        super().__init__()
        if scale_bound < 1:
            raise UsageError(f"scale_bound is the upper end of U(1, scale_bound): give at least 1, not {scale_bound}")
        if min(mean_bound, sample_mean_spread, sample_scale_spread) < 0:
            raise UsageError("mean_bound, sample_mean_spread and sample_scale_spread are widths: give none below 0")
        self.num_features = num_features
        self.mean_bound = mean_bound
        self.scale_bound = scale_bound
        self.sample_mean_spread = sample_mean_spread
        self.sample_scale_spread = sample_scale_spread
        self.seed = seed
        self.strength = strength
        self.mean = mean
        self.scale = scale
        self.per_sample = per_sample
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def forward(self, input: Tensor) -> Tensor:
        """Add noise in training.

        Args:
            input: Values ``(N, C, *)``.

        Returns:
            Values of the same shape and type; outside training ``input`` itself.

        Raises:
            ShapeError: The input does not have ``num_features`` channels.
        """
        if not isinstance(input, Tensor):
            return self.recorded(input)
        if not self.training:
            return input
        if input.ndim < 2 or input.shape[1] != self.num_features:
            raise ShapeError(f"expected an input (N, {self.num_features}, *), got shape {tuple(input.shape)}")
        s, m = self.noise(input)
        self.draws.add_(1)
        return input * s + m

    @torch.no_grad()
    def noise(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the noise of the next training forward, without moving on to the one after it.

        Args:
            like: A tensor ``(N, C, *)`` whose shape, type and device the noise takes.

        Returns:
            The factor and the summand, each of a shape that broadcasts to that of ``like``.
        """
        # Drawn on the CPU in float32: the same numbers on every device and for every type of the input.
        generator = torch.Generator().manual_seed((self.seed * _STRIDE + int(self.draws)) % _SEEDS)
        channels = torch.rand(2, self.num_features, generator=generator, dtype=torch.float32)
        mu = channelwise(self.mean_bound * (2 * channels[0] - 1), like)
        sigma = channelwise(1 + (self.scale_bound - 1) * channels[1], like)
        m, s = mu, sigma
        if self.per_sample:  # both parts are drawn though one may be off: arms that differ in parts stay paired
            uniform = torch.rand(like.shape, generator=generator, dtype=torch.float32)
            normal = torch.randn(like.shape, generator=generator, dtype=torch.float32)
            m = mu + self.sample_mean_spread * (2 * uniform - 1)
            s = sigma + self.sample_scale_spread * normal
        s = 1 + self.strength * (s - 1) if self.scale else torch.ones_like(sigma)
        m = self.strength * m if self.mean else torch.zeros_like(mu)
        return s.to(like), m.to(like)

    def extra_repr(self) -> str:
        """Show the noise's parameters."""
        return (
            f"{self.num_features}, mean_bound={self.mean_bound}, scale_bound={self.scale_bound}, "
            f"sample_mean_spread={self.sample_mean_spread}, sample_scale_spread={self.sample_scale_spread}, "
            f"seed={self.seed}, strength={self.strength}, mean={self.mean}, scale={self.scale}, "
            f"per_sample={self.per_sample}"
        )
