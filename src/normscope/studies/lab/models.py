"""Small networks whose normalization is a parameter: arms differ in one thing and share their initial weights."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from normscope._errors import UsageError
from normscope.studies.lab.streams import generator


@dataclass(frozen=True, slots=True)
class Place:
    """Where a normalization stands.

    Attributes:
        index: Number of the hidden layer, from 0 at the input.
        features: Channels or units of what is normalized.
        spatial: Whether it has the shape (N, C, H, W); else (N, C).
    """

    index: int
    features: int
    spatial: bool = False


Norm = Callable[[Place], nn.Module]
M = TypeVar("M", bound=nn.Module)


class Block(nn.Module):
    """A linear layer, a normalization, an activation: ``activation(norm(linear(x)))``.

    ``norm`` is the identity in an arm without normalization, so the output of ``norm`` is the input of the activation
    in every arm, under the same name.
    """

    def __init__(self, linear: nn.Module, norm: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.linear = linear
        self.norm = norm
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Apply the three in turn."""
        out: Tensor = self.activation(self.norm(self.linear(x)))
        return out


class _Stacked(nn.Module):
    """Blocks and a head; what the networks of this file share."""

    blocks: nn.ModuleList

    def sites(self) -> list[str]:
        """Return the names of the normalization sites, whose outputs enter the activations."""
        return [f"blocks.{i}.norm" for i in range(len(self.blocks))]


class MLP(_Stacked):
    """Hidden layers of equal width and a linear head without normalization. Inputs are flattened."""

    def __init__(
        self, inputs: int, width: int, depth: int, classes: int, norm: Norm, activation: str, bias: bool
    ) -> None:
        super().__init__()
        sizes = [inputs] + [width] * depth
        self.blocks = nn.ModuleList(
            Block(_linear(sizes[i], width, bias=bias), norm(Place(i, width)), _activation(activation))
            for i in range(depth)
        )
        self.head = _linear(sizes[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images or vectors (N, ...) to logits (N, classes)."""
        x = x.flatten(1)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(x)
        return out


class CNN(_Stacked):
    """Four 3x3 convolutions (16, 16, 32, 32), each pair followed by a 2x2 maximum, and a linear head."""

    WIDTHS = (16, 16, 32, 32)

    def __init__(self, shape: Sequence[int], classes: int, norm: Norm, activation: str) -> None:
        super().__init__()
        channels, height, width = shape
        if min(height, width) < 4:
            raise UsageError(f"the CNN needs images of at least 4x4 pixels, got {height}x{width}: use the mlp instead")
        sizes = [channels, *self.WIDTHS]
        self.blocks = nn.ModuleList(
            Block(_conv(sizes[i], size), norm(Place(i, size, spatial=True)), _activation(activation))
            for i, size in enumerate(self.WIDTHS)
        )
        self.pool = nn.MaxPool2d(2)
        self.head = _linear(self.WIDTHS[-1] * (height // 4) * (width // 4), classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in (1, 3):
                x = self.pool(x)
        out: Tensor = self.head(x.flatten(1))
        return out


class VGG(_Stacked):
    """Configuration A of Simonyan & Zisserman 2015, Table 1, with one linear layer behind its eight convolutions.

    For images of 32x32 the five poolings leave one position. A pooling that finds fewer than two pixels on a side is
    left out, so smaller images work too.
    """

    LAYOUT = (1, -1, 2, -1, 4, 4, -1, 8, 8, -1, 8, 8, -1)

    def __init__(self, shape: Sequence[int], width: int, classes: int, norm: Norm, activation: str) -> None:
        super().__init__()
        channels, height, columns = shape
        blocks: list[Block] = []
        self._pool_after: set[int] = set()
        for item in self.LAYOUT:
            if item > 0:
                place = Place(len(blocks), item * width, spatial=True)
                blocks.append(Block(_conv(channels, place.features), norm(place), _activation(activation)))
                channels = place.features
            elif min(height, columns) >= 2:
                self._pool_after.add(len(blocks) - 1)
                height, columns = height // 2, columns // 2
        self.blocks = nn.ModuleList(blocks)
        self.pool = nn.MaxPool2d(2)
        self.head = _linear(channels * height * columns, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, classes)."""
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self._pool_after:
                x = self.pool(x)
        out: Tensor = self.head(x.flatten(1))
        return out


class DeepLinear(_Stacked):
    """A product of square matrices, ``W_k ... W_1 x``, with normalization behind each (Santurkar et al. 2018, A.1).

    Whether the last layer is normalized is not stated there; both can be had.
    """

    def __init__(self, size: int, depth: int, norm: Norm, *, last: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(
                _linear(size, size, bias=False),
                norm(Place(i, size)) if last or i < depth - 1 else nn.Identity(),
                nn.Identity(),
            )
            for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, size) to (N, size)."""
        for block in self.blocks:
            x = block(x)
        return x


def mlp(
    depth: int,
    width: int,
    *,
    inputs: int,
    classes: int,
    norm: Norm,
    seed: int,
    activation: str = "relu",
    bias: bool = True,
    gain: float = 2.0,
) -> MLP:
    """Make MLP-``depth`` x ``width``: He-normal weights, zero biases.

    Args:
        depth: Hidden layers.
        width: Units of each.
        inputs: Numbers in one input, flattened.
        classes: Number of logits.
        norm: What stands between each linear layer and its activation.
        seed: Seed of the initial weights; the same tensors for the same seed whatever ``norm`` is.
        activation: ``relu``, ``tanh``, ``sigmoid``, ``softplus``, ``gelu``, ``leaky-relu`` or ``linear``.
        bias: Whether the hidden linear layers have one; the head has.
        gain: Variance of the weights times the number of inputs; 2 is He's, 2 s^2 is He's times s.
    """
    return _initialise(MLP(inputs, width, depth, classes, norm, activation, bias), seed, gain)


def cnn_s(*, shape: Sequence[int], classes: int, norm: Norm, seed: int, activation: str = "relu") -> CNN:
    """Make CNN-S for images of ``shape`` (C, H, W): He-normal weights, zero biases. Arguments as in ``mlp``.

    Raises:
        UsageError: The images have fewer than 4 pixels on a side.
    """
    return _initialise(CNN(shape, classes, norm, activation), seed)


def vgg_a(
    *, shape: Sequence[int], classes: int, norm: Norm, seed: int, width: int = 64, activation: str = "relu"
) -> VGG:
    """Make VGG-A for images of ``shape`` (C, H, W), ``width`` channels in its first layer. Arguments as in ``mlp``."""
    return _initialise(VGG(shape, width, classes, norm, activation), seed)


def deep_linear(*, norm: Norm, seed: int, depth: int = 25, size: int = 10, last: bool = False) -> DeepLinear:
    """Make the deep linear network of Santurkar et al. 2018, A.1: Glorot-normal weights, no biases.

    Args:
        norm: What stands behind each matrix.
        seed: Seed of the initial weights.
        depth: Number of matrices.
        size: Rows and columns of each.
        last: Whether the last matrix is followed by ``norm`` too.
    """
    return _initialise(DeepLinear(size, depth, norm, last=last), seed, gain=1.0)


def build(name: str, *, shape: Sequence[int], classes: int, norm: Norm, seed: int, **options: Any) -> nn.Module:
    """Make a network by the name that a study's preset gives.

    Args:
        name: ``"mlp"`` (options depth, width), ``"cnn-s"`` or ``"vgg-a"`` (option width).
        shape: Shape of one input, (C, H, W) or (features,).
        classes: Number of logits.
        norm: What stands between each linear layer and its activation.
        seed: Seed of the initial weights.
        options: Sizes of the network.

    Raises:
        UsageError: No network has the name, or it cannot take the data's shape.
    """
    if name == "mlp":
        return mlp(inputs=math.prod(shape), classes=classes, norm=norm, seed=seed, **options)
    if name not in ("cnn-s", "vgg-a"):
        raise UsageError(f"no network is called {name!r}: use mlp, cnn-s or vgg-a")
    if len(shape) != 3:
        raise UsageError(f"{name} needs images of shape (channels, height, width), got {tuple(shape)}: use mlp")
    if name == "cnn-s":
        return cnn_s(shape=shape, classes=classes, norm=norm, seed=seed, **options)
    return vgg_a(shape=shape, classes=classes, norm=norm, seed=seed, **options)


def _weights(model: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            yield module


def _initialise(model: M, seed: int, gain: float = 2.0) -> M:
    """Draw all weights, first layer first, from the seed's own stream; biases are zero.

    Weights are drawn in float32 whatever the model's dtype, so a float64 twin has the same weights.
    """
    source = generator(seed, "init")
    with torch.no_grad():
        for module in _weights(model):
            fan_in = module.weight[0].numel()
            spread = math.sqrt(gain / fan_in)
            module.weight.copy_(torch.randn(module.weight.shape, generator=source) * spread)
            if module.bias is not None:
                module.bias.zero_()
    return model


def _linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    # Torch's own initialisation would be thrown away, and would move the global random state.
    return nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.utils.skip_init(nn.Conv2d, inputs, outputs, 3, padding=1)


def _activation(name: str) -> nn.Module:
    choices: dict[str, Callable[[], nn.Module]] = {
        "relu": nn.ReLU,
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
        "softplus": lambda: nn.Softplus(beta=10),
        "gelu": nn.GELU,
        "leaky-relu": lambda: nn.LeakyReLU(0.1),
        "linear": nn.Identity,
    }
    if name not in choices:
        raise UsageError(f"no activation is called {name!r}: use one of {', '.join(choices)}")
    return choices[name]()
