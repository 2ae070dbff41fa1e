"""What may stand at a norm's place in a transformer: one factory an arm. Inputs are (*, features)."""

from torch import Tensor, nn

from normscope import layers
from normscope.studies.lab.models import Norm


def none() -> Norm:
    """No norm: values pass as they are."""
    return lambda place: nn.Identity()


def layer(eps: float = 1e-5) -> Norm:
    """Layer normalization over the features of a position, with gain and shift."""
    return lambda place: layers.LayerNorm(place.features, eps=eps)


def rms(eps: float = 1e-5) -> Norm:
    """RMS normalization over the features of a position, with gain."""
    return lambda place: layers.RMSNorm(place.features, eps=eps)


def dyt(alpha: float = 0.5) -> Norm:
    """Dynamic tanh, with gain and shift (Zhu et al. 2025)."""
    return lambda place: layers.DynamicTanh(place.features, alpha=alpha)


def batch(momentum: float = 0.1) -> Norm:
    """Batch normalization of each feature over all positions of all samples, with gain and shift."""
    return lambda place: OverPositions(layers.BatchNorm1d(place.features, momentum=momentum))


class OverPositions(nn.Module):
    """Applies a module for (N, features) to inputs (*, features), every position a sample."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Map (*, features) to the same shape."""
        out: Tensor = self.inner(x.reshape(-1, x.shape[-1])).view(x.shape)
        return out
