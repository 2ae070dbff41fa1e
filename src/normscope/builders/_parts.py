"""The parts of residual networks: a block, and what makes blocks, stems and heads by a scheme."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn.utils import skip_init

from normscope._errors import UsageError
from normscope.builders.schemes import SCHEMES, Scheme
from normscope.layers import BatchNorm1d, BatchNorm2d, GroupNorm, ScalarBias, ScalarGain, weight_standardize
from normscope.ops import gaussian_moments


class ResidualBlock(Module):
    """The stream plus a branch of it: ``shortcut(h) + branch(h)`` with ``h = entry(x)``; ``x`` where no shortcut is.

    Args:
        entry: What branch and shortcut share.
        branch: What is added.
        shortcut: What changes the stream's shape; None where it stays.
    """

    def __init__(self, entry: Module, branch: Module, shortcut: Module | None = None) -> None:
        super().__init__()
        self.entry = entry
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream after the block."""
        h = self.entry(x)
        return (x if self.shortcut is None else self.shortcut(h)) + self.branch(h)


@dataclass
class Maker:
    """Makes the parts of one network."""

    name: str
    activation: Callable[[], Module]
    given_alpha: float | None
    groups: int
    seed: int | None
    branches: int
    layers: int

    def __post_init__(self) -> None:
        if self.name not in SCHEMES:
            raise UsageError(f"no scheme {self.name!r}: choose one of {', '.join(SCHEMES)}")
        self.scheme: Scheme = SCHEMES[self.name]
        if self.given_alpha is not None and self.scheme.alpha is None:
            raise UsageError(f"the branches of scheme {self.name!r} have no factor: leave alpha out")
        self.alpha = self.scheme.alpha if self.given_alpha is None else self.given_alpha
        self.generator = None
        if self.seed is not None:  # another stream than that of data drawn with the same seed
            self.generator = torch.Generator().manual_seed((self.seed * 0x9E3779B9 + 0x7F4A7C15) % 2**32)
        self.moments = gaussian_moments(self.activation().double())

    def layer(
        self, kind: type[Module], sizes: tuple[int, int], *, std: float, bias: bool = True, **options: Any
    ) -> Module:
        """Make a layer with Gaussian weights and no shift."""
        made = skip_init(kind, *sizes, bias=bias, **options)
        with torch.no_grad():
            weight = made.weight
            weight.copy_(torch.randn(weight.shape, generator=self.generator, dtype=weight.dtype))
            weight.mul_(std)
            if bias:
                made.bias.zero_()
        return made

    def block(
        self, layers: list[tuple[type[Module], tuple[int, int], dict[str, Any]]], *, after: int, changes: bool = False
    ) -> ResidualBlock:
        """Make a block; ``after`` is how many blocks the stream has passed since its signal was 1."""
        scheme, parts = self.scheme, []
        images = layers[0][0] is nn.Conv2d
        for kind, sizes, options in layers:
            fan_in = sizes[0] * math.prod([options["kernel_size"]] * 2 if images else [])
            made = self.layer(kind, sizes, std=(fan_in * self.moments.second) ** -0.5, bias=scheme.bias, **options)
            act = [*self.norm(sizes[0], images=images), *self.shift(), *self.act()]
            parts += [*act, *self.shift(), made] if scheme.activation_first else [made, *act]
            if scheme.zero_ends:
                with torch.no_grad():
                    last = len(layers) == sum(isinstance(part, kind) for part in parts)
                    made.weight.mul_(0.0 if last else self.branches ** (-1 / (2 * self.layers - 2)))  # type: ignore[operator]
            if scheme.standardized:
                weight_standardize(made)
        if self.alpha is not None:
            parts.append(ScalarGain(self.alpha, learn=scheme.learn_alpha))
        shortcut = None
        if changes:
            sizes = layers[0][1]
            shortcut = self.layer(nn.Conv2d, sizes, std=sizes[0] ** -0.5, bias=False, kernel_size=1, stride=2)
            if scheme.standardized:
                weight_standardize(shortcut)
        if not scheme.standardized:
            return ResidualBlock(nn.Identity(), nn.Sequential(*parts), shortcut)
        split = len(self.act())
        entry = nn.Sequential(self.whitening(after), *parts[:split])
        return ResidualBlock(entry, nn.Sequential(*parts[split:]), shortcut)

    def norm(self, width: int, *, images: bool) -> list[Module]:
        """Make the norm before an activation."""
        match self.scheme.norm:
            case "batch":
                return [BatchNorm2d(width) if images else BatchNorm1d(width)]
            case "layer":
                return [GroupNorm(1, width)]
            case "group":
                if self.groups < 1 or width % self.groups:
                    raise UsageError(f"{width} channels do not split into {self.groups} equal groups: change groups")
                return [GroupNorm(self.groups, width)]
        return []

    def act(self) -> list[Module]:
        """Make an activation, of unit variance where the scheme asks for it."""
        if self.scheme.standardized:
            return [self.activation(), ScalarGain(self.moments.gain, learn=False)]
        return [self.activation()]

    def shift(self) -> list[Module]:
        """Make a scalar bias where the scheme has them."""
        return [ScalarBias()] if self.scheme.scalar_biases else []

    def whitening(self, after: int) -> Module:
        """Divide by the standard deviation that the stream is predicted to have."""
        return ScalarGain(self.scheme.signal(after, self.alpha or 0.0) ** -0.5, learn=False)

    def final(self, width: int, *, images: bool, after: int) -> Module:
        """Make what lies between the stream and the head."""
        known = [self.whitening(after)] if self.scheme.standardized else []
        pool = [nn.AdaptiveAvgPool2d(1)] if images else []
        norm = self.norm(width, images=images)
        return nn.Sequential(*known, *norm, *self.shift(), *self.act(), *pool, nn.Flatten(), *self.shift())

    def head(self, width: int, outputs: int) -> Module:
        """Make the last layer."""
        std = 0.0 if self.scheme.zero_ends else (width * self.moments.second) ** -0.5
        return self.layer(nn.Linear, (width, outputs), std=std)
