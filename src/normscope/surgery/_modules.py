"""The modules that surgery leaves behind where torch has none that fits."""

from typing import Any

import torch
from torch import Tensor, nn


class ChannelAffine(nn.Module):
    """A gain and a shift per channel: what remains of a norm without its statistics.

    Args:
        weight: Gain ``(C,)``, or None for 1.
        bias: Shift ``(C,)``, or None for 0.
        axis: The channels' axis: 1 for ``(N, C, *)``, -1 for ``(N, *, C)``.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, weight: nn.Parameter | None, bias: nn.Parameter | None, axis: int = 1) -> None:
        super().__init__()
        self.axis = axis
        self.register_parameter("weight", weight)
        self.register_parameter("bias", bias)

    def forward(self, input: Tensor) -> Tensor:
        """Scale and shift each channel of ``input``."""
        return self._affine(input)

    def _affine(self, x: Tensor) -> Tensor:
        # The axis is moved, not the gain reshaped: torch.fx traces without a number of axes.
        y, weight, bias = x.movedim(self.axis, -1), self.weight, self.bias
        if weight is not None:
            y = y * weight
        if bias is not None:
            y = y + bias
        return y.movedim(-1, self.axis)

    def extra_repr(self) -> str:
        """Show what there is."""
        some = self.weight if self.weight is not None else self.bias
        return f"{0 if some is None else some.numel()}, axis={self.axis}, bias={self.bias is not None}"


class RMSNorm(ChannelAffine):
    r"""Root-mean-square norm with a gain **and a shift**, for channels at the second or the last axis.

    $y = \gamma x / \sqrt{\langle x^2 \rangle + \epsilon} + \beta$ (Zhang & Sennrich, 2019, eq. 4), the mean over
    all channels and positions of a sample (``axis=1``, as ``GroupNorm(1, C)`` takes it) or over the channels of a
    token (``axis=-1``, as ``torch.nn.RMSNorm``). ``torch.nn.RMSNorm`` has no shift and so cannot keep a learned one.

    Args:
        weight: Gain ``(C,)``, or None.
        bias: Shift ``(C,)``, or None.
        axis: The channels' axis, 1 or -1.
        eps: Added to the mean square, in squared units of the input.
    """

    def __init__(
        self, weight: nn.Parameter | None, bias: nn.Parameter | None, axis: int = 1, *, eps: float = 1e-5
    ) -> None:
        super().__init__(weight, bias, axis)
        self.eps = eps

    def forward(self, input: Tensor) -> Tensor:
        """Normalize, scale and shift; the mean square is float32 or wider."""
        wide = input.to(torch.promote_types(input.dtype, torch.float32))
        if self.axis == 1:
            # Samples last, so that a number each goes with them, whatever the number of other axes.
            size = wide.square().flatten(1).mean(1)
            y = (wide.movedim(0, -1) * (size + self.eps).rsqrt()).movedim(-1, 0)
        else:
            y = wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return self._affine(y.to(input.dtype))

    def extra_repr(self) -> str:
        """Show what there is."""
        return f"{super().extra_repr()}, eps={self.eps}"


class ChannelsLast(nn.Module):
    """A norm of ``(N, C, *)`` applied to ``(N, *, C)``, where a layer norm stood.

    Args:
        norm: The norm.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, input: Tensor) -> Tensor:
        """Move the last axis to the second place, normalize, move it back.

        The output lies in memory as a layer norm's does: what follows may take a ``view`` of it.
        """
        return self.norm(input.movedim(-1, 1)).movedim(1, -1).contiguous()


class ChannelsFirst(nn.Module):
    """A norm of the last axis applied to the second axis of ``(N, C, *)``: each position by itself.

    Args:
        norm: The norm.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, input: Tensor) -> Tensor:
        """Move the second axis to the last place, normalize, move it back."""
        return self.norm(input.movedim(1, -1)).movedim(-1, 1)


class Bypass(nn.Identity):
    """What stands where a norm stood: the identity, also where the norm is given a mask beside its input."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the input."""
        return input


class NormThen(nn.Module):
    """A norm, and what a module of another library does after it: noise, dropout, an activation.

    Args:
        norm: The norm, or what took its place.
        *then: Called one after another on its output.
    """

    def __init__(self, norm: nn.Module, *then: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.then = nn.Sequential(*then)

    def forward(self, input: Tensor) -> Tensor:
        """Normalize, then the rest."""
        return self.then(self.norm(input))
