r"""Normalization by an lp norm (Santurkar et al., 2018, section 3.3; Hoffer et al., 2018)."""

import math

import torch
from torch import Tensor
from torch.nn import Parameter

from normscope._errors import UsageError
from normscope.layers._layer import AbstractLayer
from normscope.ops import ShapeError, lp_norm
from normscope.ops.lp import ORDERS
from normscope.ops.statistics import wide
from normscope.ops.track import share_of_batch


class LpNorm(AbstractLayer):
    r"""Lp normalization: centre, and divide by the average lp norm instead of the standard deviation.

    ## Formula
    $y = \gamma (x - \mu) / \sqrt{s^2 + \epsilon} + \beta$ with $s = \langle |x|^p \rangle^{1/p}$ for
    $p = 1, 2$ and $s = \max |x|$ for $p = \infty$: the norm is that of the values as they come,
    *before* the mean is taken off, so that nothing holds the variance of the output at 1.

    With ``centred=True`` the norm is that of $x - \mu$; for $p = 2$ this is batch normalization. With
    ``gaussian=True`` it is also multiplied by what makes it the standard deviation of Gaussian values:
    $\sqrt{\pi/2}$ for $p = 1$; for the maximum over $n$ values one over its expectation, which grows
    as $\sqrt{2 \ln n}$. Both together are the variants of Hoffer et al. (who average the ten largest values where
    this takes the maximum, with a constant for that).

    ## Statistics
    In training the mean and norm of the channel over the batch and all positions; outside it their running averages
    (of the norm itself, in units of the input). float32 or wider whatever the input.

    ## Invariances
    In training: scaling a channel by a positive number while its norm is large beside $\sqrt\epsilon$. With
    ``centred=True`` also adding a constant to a channel; without it, that changes the output's scale. The gradient at
    the input sums to zero over each channel only where the latter holds, and is orthogonal to it in either case.

    Where several values attain the maximum, each has an equal share in its derivative.

    Args:
        num_features: Channels ``C`` of inputs ``(N, C, *)``.
        p: Order of the norm: 1, 2 or ``math.inf``.
        eps: Added to the squared norm, in squared units of the input.
        momentum: Share of the newest batch in the running statistics; None for the average over all batches.
        affine: Whether there are a gain (``weight``) and a shift (``bias``) to learn.
        track_running_stats: Whether running statistics are kept; without them each batch has its own, in eval too.
        centred: Take the norm after the mean is taken off.
        gaussian: Estimate the standard deviation of Gaussian values.
        device: Where parameters and buffers live.
        dtype: Type of the parameters; running statistics are float32 or wider.
    """

    CODE = "lp_norm"
    SOURCES = ("arXiv:1805.11604 section 3.3", "arXiv:1803.01814 section 4")

    running_mean: Tensor | None
    running_norm: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(
        self,
        num_features: int,
        p: float = 2,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        centred: bool = False,
        gaussian: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if p not in ORDERS:
            raise UsageError(f"p is the order of the norm: give 1, 2 or math.inf, not {p}")
        self.num_features = num_features
        self.p = math.inf if p == math.inf else int(p)
        self.eps = eps
        self.momentum = momentum
        self.affine = affine
        self.track_running_stats = track_running_stats
        self.centred = centred
        self.gaussian = gaussian
        made = {"device": device, "dtype": dtype}
        self.weight = Parameter(torch.ones(num_features, **made)) if affine else None  # type: ignore[arg-type]
        self.bias = Parameter(torch.zeros(num_features, **made)) if affine else None  # type: ignore[arg-type]
        kept = wide(dtype or torch.get_default_dtype())

        def full(value: float) -> Tensor:
            return torch.full((num_features,), value, device=device, dtype=kept)

        for name, value in (("running_mean", 0.0), ("running_norm", 1.0)):
            self.register_buffer(name, full(value) if track_running_stats else None)
        count = torch.zeros((), dtype=torch.int64, device=device)
        self.register_buffer("num_batches_tracked", count if track_running_stats else None)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each channel.

        Args:
            input: Values ``(N, C, *)``.

        Returns:
            The normalized values in the type and shape of ``input``.

        Raises:
            ShapeError: In training, one value a channel; or not one channel for each feature.
        """
        if not isinstance(input, Tensor):
            return self.recorded(input)
        if input.ndim < 2 or input.shape[1] != self.num_features:
            raise ShapeError(f"expected an input (N, {self.num_features}, *), got shape {tuple(input.shape)}")
        seen = self.num_batches_tracked
        updates = self.training and seen is not None
        y = lp_norm(
            input,
            self.weight,
            self.bias,
            p=self.p,
            eps=self.eps,
            centred=self.centred,
            gaussian=self.gaussian,
            running_mean=self.running_mean,
            running_norm=self.running_norm,
            training=self.training or self.running_norm is None,
            momentum=share_of_batch(self.momentum, seen, wide(input.dtype)) if updates else 0.0,
        )
        if updates and seen is not None:  # only now: a forward that raises is not counted
            seen.add_(1)
        return y

    def extra_repr(self) -> str:
        """Show the options."""
        return (
            f"{self.num_features}, p={self.p}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}, centred={self.centred}, gaussian={self.gaussian}"
        )
