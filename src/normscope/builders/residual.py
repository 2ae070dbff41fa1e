"""Residual networks, fully connected and convolutional, one builder each for every scheme."""

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
from normscope.layers import (
    BatchNorm1d,
    BatchNorm2d,
    GroupNorm,
    ScalarBias,
    ScalarGain,
    weight_standardize,
)
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


class ResidualNet(Module):
    """A stem, a stack of residual blocks on one stream, and a head.

    Args:
        stem: Input to stream.
        blocks: The stack.
        final: Stream to features.
        head: Features to outputs.
        scheme: By which it was built.
    """

    def __init__(self, stem: Module, blocks: list[ResidualBlock], final: Module, head: Module, scheme: str) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.final = final
        self.head = head
        self.scheme = scheme

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs."""
        return self.head(self.final(self.stream(x)[-1]))

    def stream(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the stream after the stem and after each block."""
        found = [self.stem(x)]
        for block in self.blocks:
            found.append(block(found[-1]))
        return tuple(found)


def residual_mlp(
    depth: int,
    width: int,
    *,
    inputs: int,
    outputs: int,
    scheme: str = "batch",
    branch_layers: int = 2,
    activation: Callable[[], Module] = nn.ReLU,
    alpha: float | None = None,
    groups: int = 8,
    seed: int | None = None,
) -> ResidualNet:
    """Build a fully connected residual network.

    The stem is one layer without activation, the head norm (where there is one), activation and one layer. Whatever
    the scheme, the same ``seed`` draws the same weights up to their scale.

    Args:
        depth: Residual blocks.
        width: Units of the stream and of each layer.
        inputs: Values of a sample; inputs ``(N, *)`` are flattened.
        outputs: Values that are returned.
        scheme: A key of ``SCHEMES``.
        branch_layers: Layers ``m`` of each branch.
        activation: Makes an activation.
        alpha: Another factor of the branches than the scheme's: ``depth ** -0.5`` is SkipInit's other choice.
        groups: Groups of a group norm.
        seed: Of the weights; None for torch's global random state.

    Returns:
        The network, to be called with ``(N, *)`` for ``(N, outputs)``.

    Raises:
        UsageError: An unknown scheme; a size below 1; ``alpha`` where the scheme has none; groups that do not divide.

    Example:
        >>> net = residual_mlp(8, 64, inputs=64, outputs=10, scheme="skipinit", seed=0)
        >>> x = torch.randn(5, 64)
        >>> first, *_, last = net.stream(x)
        >>> first.equal(last)  # the stack is the identity at first
        True
    """
    _positive(depth=depth, width=width, inputs=inputs, outputs=outputs, branch_layers=branch_layers)
    make = _Maker(scheme, activation, alpha, groups, seed, branches=depth, layers=branch_layers)
    stem = nn.Sequential(nn.Flatten(), make.layer(nn.Linear, (inputs, width), std=inputs**-0.5))
    blocks = [make.block([(nn.Linear, (width, width), {})] * branch_layers, after=index) for index in range(depth)]
    final = make.final(width, images=False, after=depth)
    return ResidualNet(stem, blocks, final, make.head(width, outputs), scheme)


def residual_cnn(
    depth: int,
    width: int = 16,
    *,
    channels: int = 3,
    outputs: int = 10,
    stages: int = 3,
    scheme: str = "batch",
    branch_layers: int = 2,
    activation: Callable[[], Module] = nn.ReLU,
    alpha: float | None = None,
    groups: int = 8,
    padding_mode: str = "zeros",
    seed: int | None = None,
) -> ResidualNet:
    """Build a convolutional residual network of 3 x 3 filters, as in the CIFAR networks of He et al. (2016).

    Each stage after the first halves height and width and doubles the channels; the stream passes by a 1 x 1
    convolution of stride 2 there, drawn to keep the signal. With two layers a branch, ``depth=54`` is ResNet-110.
    Whatever the scheme, the same ``seed`` draws the same weights up to their scale.

    Args:
        depth: Residual blocks in all, a multiple of ``stages``.
        width: Channels of the first stage.
        channels: Channels of the images.
        outputs: Values that are returned.
        stages: Stages of equal depth.
        scheme: A key of ``SCHEMES``; "layer" is one group over channels and positions, with a gain per channel.
        branch_layers: Convolutions ``m`` of each branch.
        activation: Makes an activation.
        alpha: Another factor of the branches than the scheme's.
        groups: Groups of a group norm.
        padding_mode: Of the 3 x 3 filters. Zeros take away from the signal at the border; "circular" does not.
        seed: Of the weights; None for torch's global random state.

    Returns:
        The network, to be called with ``(N, channels, H, W)`` for ``(N, outputs)``.

    Raises:
        UsageError: An unknown scheme; a size below 1; ``alpha`` where the scheme has none; groups or stages that do not
            divide.
    """
    _positive(depth=depth, width=width, channels=channels, outputs=outputs, stages=stages, branch_layers=branch_layers)
    if depth % stages:
        raise UsageError(f"{depth} blocks do not split into {stages} equal stages: give a multiple of {stages}")
    make = _Maker(scheme, activation, alpha, groups, seed, branches=depth, layers=branch_layers)
    three: dict[str, Any] = {"kernel_size": 3, "padding": 1, "padding_mode": padding_mode}
    stem = make.layer(nn.Conv2d, (channels, width), std=(9 * channels) ** -0.5, **three)
    blocks, after = [], 0
    for index in range(depth):
        narrow = width
        changes = index > 0 and index % (depth // stages) == 0
        width *= 2 if changes else 1
        first = (nn.Conv2d, (narrow, width), {**three, "stride": 2 if changes else 1})
        rest = [(nn.Conv2d, (width, width), three)] * (branch_layers - 1)
        blocks.append(make.block([first, *rest], after=after, changes=changes))
        # A normalizer-free shortcut starts the stream anew at a signal of 1.
        after = 1 if changes else after + 1
    final = make.final(width, images=True, after=after)
    return ResidualNet(stem, blocks, final, make.head(width, outputs), scheme)


def scalar_groups(model: Module, lr: float, *, ratio: float = 0.1) -> list[dict[str, Any]]:
    """Split parameters for an optimizer: scalar gains and biases learn slower (Fixup: a tenth).

    Args:
        model: Any model.
        lr: Learning rate of all other parameters.
        ratio: That of the scalars, in units of ``lr``.

    Returns:
        Two parameter groups, the scalars second.
    """
    scalars = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, ScalarGain | ScalarBias)
        for parameter in module.parameters(recurse=False)
    }
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if id(p) not in scalars], "lr": lr},
        {"params": [p for p in parameters if id(p) in scalars], "lr": lr * ratio},
    ]


@dataclass
class _Maker:
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
        if self.seed is not None:  # a stream of its own: not that of data drawn with the same seed
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


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"{name} is a size: give at least 1, not {size}")
