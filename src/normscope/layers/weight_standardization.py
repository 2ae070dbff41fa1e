r"""Weight standardization, plain (Qiao et al., 2019) and scaled (Brock, De & Smith, 2021)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from normscope._errors import UsageError
from normscope.layers._layer import AbstractLayer
from normscope.ops import gaussian_moments, standardize


class WeightStandardization(AbstractLayer):
    r"""Weight standardization: each unit's incoming weights have mean 0 and a fixed norm.

    ## Formula
    Of the $N$ weights into one output unit, with their mean $\mu$ and biased variance $\sigma^2$,

    $$\hat W = g\, (W - \mu) / \sqrt{N \sigma^2 + \epsilon},$$

    so that inputs of equal mean and unit variance give outputs of mean 0 and variance $g^2$. Where the inputs are
    $\phi(z)$ of Gaussian $z$, the gain $g = \mathrm{Var}[\phi(z)]^{-1/2}$ keeps the variance at 1:
    $\sqrt{2/(1 - 1/\pi)}$ for ReLU. With ``scaled=False`` there is no $N$: each weight has variance
    $g^2$, and the norm that follows has to take care of the fan-in.

    ## Statistics
    Of the weights, none of the data: training and evaluation are one, and so are all batch sizes. float32 or wider
    whatever the type of the weights.

    ## Invariances
    Adding a constant to all weights into a unit, and scaling them by a positive number while $N \sigma^2$ is
    large beside ``eps``. The gradient at the weights is orthogonal to both.

    Weight normalization, which divides by the norm and leaves the mean, is torch's own, and re-exported here as
    ``layers.weight_norm``.

    Args:
        units: Output units; None where no gain is learned.
        gain: $g$.
        scaled: Whether the fan-in is divided out.
        eps: Added to $N \sigma^2$.
        axis: Axis of the weights that counts output units.
        learn_gain: Whether $g$ is multiplied by a factor per unit to learn, 1 at first (``factor``).
    """

    CODE = "weight_standardization"
    SOURCES = ("arXiv:1903.10520 section 3", "arXiv:2101.08692 section 4.3")

    def __init__(
        self,
        units: int | None = None,
        gain: float = 1.0,
        *,
        scaled: bool = True,
        eps: float = 1e-6,
        axis: int = 0,
        learn_gain: bool = False,
    ) -> None:
        super().__init__()
        if learn_gain and units is None:
            raise UsageError("learn_gain needs to know how many units there are: give units")
        self.gain = gain
        self.scaled = scaled
        self.eps = eps
        self.axis = axis
        self.factor = Parameter(torch.ones(units)) if learn_gain and units is not None else None

    def forward(self, weight: Tensor) -> Tensor:
        """Standardize weights.

        Args:
            weight: Weights, whose ``axis`` counts output units.

        Returns:
            The standardized weights in the type and shape of ``weight``.
        """
        if not isinstance(weight, Tensor):
            return self.recorded(weight)
        others = tuple(axis for axis in range(weight.ndim) if axis != self.axis % weight.ndim)
        fan_in = weight.numel() // weight.shape[self.axis]
        standard, _ = standardize(weight, others, self.eps / fan_in)
        standard = standard * (self.gain / math.sqrt(fan_in) if self.scaled else self.gain)
        if self.factor is not None:
            standard = standard * self.factor.view([-1 if axis not in others else 1 for axis in range(weight.ndim)])
        return standard.to(weight.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Take weights as the ones to be standardized, so that the parameter can be assigned to."""
        return weight

    def extra_repr(self) -> str:
        """Show the options."""
        return f"gain={self.gain:.5g}, scaled={self.scaled}, eps={self.eps}, learn_gain={self.factor is not None}"


def weight_standardize(
    module: Module,
    gain: float | Callable[[Tensor], Tensor] = 1.0,
    *,
    name: str = "weight",
    scaled: bool = True,
    eps: float = 1e-6,
    learn_gain: bool = False,
) -> Module:
    """Standardize the weight of a linear layer or a convolution, in place, at every use.

    The weight becomes a parametrization: ``module.parametrizations.weight.original`` is what is learned. It can be
    undone with ``torch.nn.utils.parametrize.remove_parametrizations``, copied, and saved by its state dict; torch does
    not pickle modules with parametrizations.

    Args:
        module: A linear layer, or a convolution of any rank, transposed ones with ``groups=1``.
        gain: The gain, or the activation before the layer: then the gain that keeps the variance of Gaussian values.
        name: Which parameter.
        scaled: Divide the fan-in out, as in NF-ResNets; else the plain form.
        eps: Added to the fan-in times the variance of the weights.
        learn_gain: Whether a factor per output unit is learned.

    Returns:
        ``module``.

    Raises:
        UsageError: ``module`` has no such parameter with two or more axes, or is a grouped transposed convolution, or
            is standardized already.

    Example:
        >>> layer = weight_standardize(torch.nn.Linear(100, 10), torch.relu)
        >>> round(layer.weight.norm(dim=1).mean().item(), 3)
        1.713
    """
    weight = getattr(module, name, None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        raise UsageError(f"{type(module).__name__} has no parameter {name!r} with an axis of units and one of inputs")
    if parametrize.is_parametrized(module, name) and any(
        isinstance(part, WeightStandardization)
        for part in module.parametrizations[name]  # type: ignore[index]
    ):
        raise UsageError(f"{name!r} of this {type(module).__name__} is standardized already")
    axis = 0
    if isinstance(module, _ConvTransposeNd):
        axis = 1
        if isinstance(module, _ConvNd) and module.groups != 1:
            raise UsageError("a grouped transposed convolution has no axis of output units: use groups=1")
    value = gain if isinstance(gain, int | float) else gaussian_moments(gain).gain
    rule = WeightStandardization(
        weight.shape[axis], float(value), scaled=scaled, eps=eps, axis=axis, learn_gain=learn_gain
    ).to(weight.device)
    parametrize.register_parametrization(module, name, rule)
    return module
