r"""The algebra: a scale and a shift per channel, taken into the weights of the linear map before or after.

With $s = \gamma / \sqrt{v + \epsilon}$ and $t = \beta - s \mu$, a batch norm with fixed statistics is
$y \mapsto s y + t$. All is computed in float64 and rounded once, to the weights' own type.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from normscope.modules.values import Values

LINEAR: dict[type, int] = {
    nn.Linear: 0,
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}


def scale_and_shift(norm: Any, mean: Tensor, var: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a batch norm with the statistics ``mean`` and ``var`` does to each channel, in float64."""
    gain = torch.ones(()) if norm.weight is None else norm.weight.detach()
    shift = torch.zeros(()) if norm.bias is None else norm.bias.detach()
    s = gain.double() * (var.double() + norm.eps).rsqrt()
    return s, shift.double() - s * mean.double()


def channels(linear: Any, *, into: bool) -> int:
    """Return the number of channels that go into, or come out of, a linear or convolutional layer."""
    if isinstance(linear, nn.Linear):
        return linear.in_features if into else linear.out_features
    return linear.in_channels if into else linear.out_channels


def before(linear: Any, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the layer that does what ``linear`` and then ``s y + t`` did."""
    w = linear.weight.detach().double()
    b = torch.zeros_like(t) if linear.bias is None else linear.bias.detach().double()
    return _by_output(linear, w) * s.view(-1, *(1,) * (w.ndim - 1)), b * s + t


def after(linear: Any, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the layer that does what ``s x + t`` and then ``linear`` did; see ``why_not_after``."""
    w = linear.weight.detach().double()
    b = 0.0 if linear.bias is None else linear.bias.detach().double()
    by_output = _by_output(linear, w)  # (out, in / groups, ...)
    groups = getattr(linear, "groups", 1)
    # Output channel o of group g reads input channels g * (in / groups) ...: one row of scales per output channel.
    rows = s.view(groups, -1).repeat_interleave(by_output.shape[0] // groups, 0)
    shifts = t.view(groups, -1).repeat_interleave(by_output.shape[0] // groups, 0)
    extra = (by_output.flatten(2).sum(2) if by_output.ndim > 2 else by_output).mul(shifts).sum(1)
    return by_output * rows.view(*rows.shape, *(1,) * (w.ndim - 2)), b + extra


def stored(linear: Any, by_output: Tensor) -> Tensor:
    """Return a weight ``(out, in / groups, *)`` in the layout in which ``linear`` keeps it."""
    if not isinstance(linear, _ConvTransposeNd):
        return by_output
    g = linear.groups
    parts = by_output.view(g, by_output.shape[0] // g, *by_output.shape[1:])
    return parts.transpose(1, 2).reshape(g * by_output.shape[1], by_output.shape[0] // g, *by_output.shape[2:])


def _by_output(linear: Any, weight: Tensor) -> Tensor:
    """Return a weight as ``(out, in / groups, *)``; transposed convolutions keep ``(in, out / groups, *)``."""
    if not isinstance(linear, _ConvTransposeNd):
        return weight
    g = linear.groups
    parts = weight.view(g, weight.shape[0] // g, *weight.shape[1:])
    return parts.transpose(1, 2).reshape(g * weight.shape[1], weight.shape[0] // g, *weight.shape[2:])


def why_not_after(linear: Any, t: Tensor) -> str | None:
    """Say why a shift ``t`` cannot be moved through ``linear`` into its bias, or None if it can.

    What a convolution pads with zeros is shifted before it, but not within it; so the border would differ. Without a
    shift, without padding, or where the padding repeats values of the input, it does not.
    """
    if not isinstance(linear, _ConvNd) or not bool(t.any()):
        return None
    one = all(k == 1 for k in linear.kernel_size)
    if isinstance(linear, _ConvTransposeNd):
        plain = one and all(s == 1 for s in linear.stride) and not any((*linear.padding, *linear.output_padding))
        return None if plain else "a transposed convolution reads fewer inputs at some places: the shift would differ"
    none = (
        linear.padding == "valid"
        or (linear.padding == "same" and one)
        or not any(linear._reversed_padding_repeated_twice)
    )
    if none or linear.padding_mode != "zeros":
        return None
    return "the convolution pads with zeros, which the norm would have shifted: the border would differ"


@torch.no_grad()
def write(linear: Any, by_output: Tensor, bias: Tensor) -> Callable[[], None]:
    """Give ``linear`` a weight ``(out, in / groups, *)`` and a bias, creating that if there is none.

    The weight stays the same ``Parameter``, so that an optimizer and an average still hold it.

    Returns:
        A function that puts the old weight and bias back.
    """
    weight: Any = linear.weight
    old: Any = linear._parameters["bias"]
    values = Values([("weight", weight)] + ([] if old is None else [("bias", old)]))

    def undo() -> None:
        linear._parameters["bias"] = old
        values.restore()

    weight.copy_(stored(linear, by_output))
    if old is None:
        linear._parameters["bias"] = nn.Parameter(bias.to(weight), requires_grad=weight.requires_grad)
    else:
        old.copy_(bias)
    return undo


def widened(module: nn.Module) -> nn.Module:
    """Return a copy in float64 and evaluation mode, on which what was folded is compared with what was there."""
    twin = copy.deepcopy(module).double()
    return type(twin).eval(twin)


def sample_input(linear: Any) -> Tensor:
    """Return normal values of a shape that ``linear`` takes, the same each time."""
    rank = LINEAR[type(linear)]
    generator = torch.Generator().manual_seed(0)
    sizes: list[int] = []
    if isinstance(linear, _ConvNd):
        pads = [0] * rank if isinstance(linear.padding, str) else linear.padding
        sizes = [
            d * (k - 1) + s + 3 + p
            for d, k, s, p in zip(linear.dilation, linear.kernel_size, linear.stride, pads, strict=True)
        ]
    shape = (4, channels(linear, into=True), *sizes)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(linear.weight.device)


@torch.no_grad()
def deviation(expected: Tensor, found: Tensor) -> float:
    """Return the largest difference beside the largest value; infinite where either is not finite."""
    scale = expected.abs().max().item() if expected.numel() else 0.0
    error = (expected - found).abs().max().item() if expected.numel() else 0.0
    if not (error < torch.inf and scale < torch.inf):
        return torch.inf
    return error / scale if scale else (0.0 if error == 0 else torch.inf)
