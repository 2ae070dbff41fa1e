"""A small transformer whose normalization is a parameter: the next character of a text, or the class of an image."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normscope._errors import UsageError
from normscope.studies.lab.dataset import Dataset
from normscope.studies.lab.models import Norm, Place
from normscope.studies.lab.streams import generator
from normscope.studies.lab.text import CONTEXT, Text

#: Patches on a side of an image: 16 in all.
PATCHES = 4
PLACEMENTS = ("pre", "post")
POOLS = ("class", "mean")
INITS = ("gpt2", "xavier", "xavier-scaled")


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes and options of a transformer.

    Attributes:
        width: Features of a position.
        blocks: Number of blocks, each of attention and a feed-forward network.
        heads: Heads of the attention.
        hidden: Units of the feed-forward network; four times the width if 0.
        placement: ``"pre"`` puts the norm at the beginning of a branch, ``"post"`` behind the sum of stream and branch.
        final_norm: Whether a norm stands in front of the head; None for yes in pre-norm and no in post-norm.
        activation: ``"gelu"`` or ``"relu"``, of the feed-forward network.
        init: ``"gpt2"``: weights and embeddings of standard deviation 0.02, the last matrix of each branch divided by
            the square root of the number of branches (Radford et al. 2019 and its public code);
            ``"xavier"``: weights of variance 2/(inputs + outputs), embeddings of variance 1 (Xiong et al.
            2020); ``"xavier-scaled"``: that, with the last matrices divided as in ``"gpt2"``. Biases are 0.
        pool: What an image's class is read from: a ``"class"`` token of its own, or the ``"mean"`` of the patches.
    """

    width: int = 64
    blocks: int = 4
    heads: int = 4
    hidden: int = 0
    placement: str = "pre"
    final_norm: bool | None = None
    activation: str = "gelu"
    init: str = "gpt2"
    pool: str = "class"

    def __post_init__(self) -> None:
        named = {"placement": PLACEMENTS, "pool": POOLS, "init": INITS, "activation": ("gelu", "relu")}
        for name, choices in named.items():
            if getattr(self, name) not in choices:
                raise UsageError(f"a transformer has no {name} {getattr(self, name)!r}: use {' or '.join(choices)}")
        if min(self.width, self.heads) < 1 or self.blocks < 0 or self.width % self.heads:
            raise UsageError(f"{self.heads} heads do not divide a width of {self.width}: give sizes that do")


@functools.lru_cache(maxsize=8)
def _mask(positions: int, device: torch.device) -> Tensor:
    """Return (T, T): minus infinity where a position would see a later one, else 0."""
    return torch.full((positions, positions), -math.inf, device=device).triu(1)


class Attention(nn.Module):
    """Softmax attention with several heads.

    ``logits`` is an identity through which the scaled logits (N, heads, T, T) pass before the mask, and ``weights`` one
    for the weights behind the softmax, so that hooks and meters can read both.

    Args:
        shape: Sizes.
        causal: Whether a position sees only itself and those before it.
        norm: Norm of queries and keys, over the features of a head; None for none.
        index: Number of the block.
    """

    def __init__(self, shape: Shape, *, causal: bool, norm: Norm | None, index: int) -> None:
        super().__init__()
        self.heads, self.causal = shape.heads, causal
        size = shape.width // shape.heads
        self.query, self.key, self.value, self.out = (_linear(shape.width, shape.width) for _ in range(4))
        self.query_norm, self.key_norm = (
            norm(Place(index, size)) if norm is not None else nn.Identity() for _ in range(2)
        )
        self.logits, self.weights = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, width) to the same shape."""
        n, positions, width = x.shape
        q, k, v = (
            part(x).view(n, positions, self.heads, -1).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        q, k = self.query_norm(q), self.key_norm(k)
        logits = self.logits(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]))
        if self.causal:
            logits = logits + _mask(positions, x.device).to(x.dtype)
        mixed = self.weights(logits.softmax(-1)) @ v
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(n, positions, width))
        return out


class FeedForward(nn.Module):
    """Two linear layers with an activation between: ``contract(activation(expand(x)))``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden = shape.hidden or 4 * shape.width
        self.expand, self.contract = _linear(shape.width, hidden), _linear(hidden, shape.width)
        self.activation: nn.Module = nn.GELU() if shape.activation == "gelu" else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, width) to the same shape."""
        out: Tensor = self.contract(self.activation(self.expand(x)))
        return out


class TransformerBlock(nn.Module):
    """Attention and a feed-forward network, each added to the stream, with a norm for each.

    Pre-norm: ``x + scale * branch(norm(x))``. Post-norm: ``norm(x + scale * branch(x))``.
    """

    def __init__(
        self, shape: Shape, *, norm: Norm, causal: bool, qk_norm: Norm | None, index: int, scale: float
    ) -> None:
        super().__init__()
        self.pre, self.scale = shape.placement == "pre", scale
        self.attention_norm = norm(Place(2 * index, shape.width))
        self.attention = Attention(shape, causal=causal, norm=qk_norm, index=index)
        self.feedforward_norm = norm(Place(2 * index + 1, shape.width))
        self.feedforward = FeedForward(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, width) to the same shape."""
        branches = (self.attention, self.attention_norm), (self.feedforward, self.feedforward_norm)
        for branch, norm in branches:
            x = x + self.scale * branch(norm(x)) if self.pre else norm(x + self.scale * branch(x))
        return x


class Transformer(nn.Module):
    """Embedding with learnt positions, blocks, perhaps a norm, and a linear head.

    Children: ``embed``, ``blocks`` (each ``attention_norm``, ``attention``, ``feedforward_norm``, ``feedforward``),
    ``norm`` and ``head``. ``positions`` are parameters (T, width), and ``token`` (width,) where there is a class token.

    Args:
        shape: Sizes.
        embed: Maps inputs to (N, T, width).
        positions: T, without the class token.
        classes: Number of logits.
        norm: Makes the norm of each place.
        qk_norm: Makes the norms of queries and keys; None for none.
        residual_scale: Factor of both branches of a block, by the block's number from 0.
        causal: Whether it predicts at every position from those before.
    """

    def __init__(
        self,
        shape: Shape,
        embed: nn.Module,
        positions: int,
        classes: int,
        *,
        norm: Norm,
        qk_norm: Norm | None = None,
        residual_scale: Callable[[int], float] = lambda index: 1.0,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.causal, self.pool = causal, shape.pool
        self.embed = embed
        with_token = not causal and shape.pool == "class"
        self.token = nn.Parameter(torch.empty(shape.width)) if with_token else None
        self.positions = nn.Parameter(torch.empty(positions + with_token, shape.width))
        self.blocks = nn.ModuleList(
            TransformerBlock(shape, norm=norm, causal=causal, qk_norm=qk_norm, index=i, scale=residual_scale(i))
            for i in range(shape.blocks)
        )
        ends = shape.placement == "pre" if shape.final_norm is None else shape.final_norm
        self.norm = norm(Place(2 * shape.blocks, shape.width)) if ends else nn.Identity()
        self.head = _linear(shape.width, classes)

    def stream(self, x: Tensor) -> Tensor:
        """Return what enters the first block, (N, T, width)."""
        h: Tensor = self.embed(x)
        if self.token is not None:
            h = torch.cat([self.token.expand(len(h), 1, -1), h], 1)
        return h + self.positions[: h.shape[1]]

    def forward(self, x: Tensor) -> Tensor:
        """Map characters (N, T) to logits (N, classes, T), or images (N, C, H, W) to (N, classes)."""
        h = self.stream(x)
        for block in self.blocks:
            h = block(h)
        h = self.norm(h)
        if not self.causal:
            h = h.mean(1) if self.pool == "mean" else h[:, 0]
            out: Tensor = self.head(h)
            return out
        logits: Tensor = self.head(h)
        return logits.transpose(1, 2)


class Patches(nn.Module):
    """Cuts images into 4 by 4 patches, row by row, and maps each to the width."""

    def __init__(self, channels: int, height: int, columns: int, width: int) -> None:
        super().__init__()
        if height % PATCHES or columns % PATCHES:
            raise UsageError(f"images of {height}x{columns} cannot be cut into {PATCHES}x{PATCHES} patches")
        self.linear = _linear(channels * height * columns // PATCHES**2, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, 16, width)."""
        n, channels, height, columns = x.shape
        cut = x.view(n, channels, PATCHES, height // PATCHES, PATCHES, columns // PATCHES)
        out: Tensor = self.linear(cut.permute(0, 2, 4, 1, 3, 5).reshape(n, PATCHES**2, -1))
        return out


def transformer(
    data: Dataset,
    norm: Norm,
    *,
    seed: int,
    context: int = CONTEXT,
    qk_norm: Norm | None = None,
    residual_scale: Callable[[int], float] = lambda index: 1.0,
    **sizes: Any,
) -> Transformer:
    """Make a transformer for a text or for images; the same weights for the same seed whatever the norms are.

    Args:
        data: The text, or images whose sides can be cut into four.
        norm: Makes the norm of each place from (``index``: 2 i of the attention, 2 i + 1 of the feed-forward network of
            block i, 2 L at the end; ``features``).
        seed: Seed of the initial weights.
        context: Characters of a window of text.
        qk_norm: Makes the norms of queries and keys, over the features of a head; None for none.
        residual_scale: Factor of both branches of a block, by the block's number from 0.
        sizes: Fields of ``Shape``.

    Raises:
        UsageError: The data are no images, or a size or option cannot be.
    """
    shape = Shape(**sizes)
    options: dict[str, Any] = {"norm": norm, "qk_norm": qk_norm, "residual_scale": residual_scale}
    if isinstance(data, Text):
        embed: nn.Module = nn.utils.skip_init(nn.Embedding, data.classes, shape.width)
        model = Transformer(shape, embed, context, data.classes, **options)
    elif len(data.shape) == 3:
        embed = Patches(*data.shape, shape.width)
        model = Transformer(shape, embed, PATCHES**2, data.classes, causal=False, **options)
    else:
        raise UsageError(f"a transformer takes the text or images (channels, height, width), got {data.shape}")
    return _initialise(model, shape, seed)


def _initialise(model: Transformer, shape: Shape, seed: int) -> Transformer:
    """Draw all weights from the seed's own stream, in the order of the modules; biases are 0."""
    source = generator(seed, "init")
    branches = max(1, 2 * shape.blocks)
    glorot = shape.init != "gpt2"

    def draw(weight: Tensor, spread: float) -> None:
        weight.copy_(torch.randn(weight.shape, generator=source) * spread)

    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                spread = math.sqrt(2 / (module.in_features + module.out_features)) if glorot else 0.02
                last = name.endswith(("attention.out", "feedforward.contract")) and shape.init != "xavier"
                draw(module.weight, spread / math.sqrt(branches) if last else spread)
                module.bias.zero_()
            elif isinstance(module, nn.Embedding):
                draw(module.weight, 1.0 if glorot else 0.02)
        for parameter in (model.positions, model.token):
            if parameter is not None:
                draw(parameter, 1.0 if glorot else 0.02)
    return model


def _linear(inputs: int, outputs: int) -> nn.Linear:
    # Torch's own initialisation would be thrown away, and would move the global random state.
    return nn.utils.skip_init(nn.Linear, inputs, outputs)
