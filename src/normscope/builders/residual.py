"""Residual networks, fully connected and convolutional, one builder each for every scheme."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import Module

from normscope._errors import UsageError
from normscope.builders._parts import Maker, ResidualBlock
from normscope.layers import ScalarBias, ScalarGain


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
    make = Maker(scheme, activation, alpha, groups, seed, branches=depth, layers=branch_layers)
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
    make = Maker(scheme, activation, alpha, groups, seed, branches=depth, layers=branch_layers)
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


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"{name} is a size: give at least 1, not {size}")
