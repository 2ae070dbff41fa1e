"""Small transformers in the styles of public code, in which rules plant what they find."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normscope.evidence import examples
from normscope.evidence.case import Case

WORDS, LENGTH, WIDTH, HEADS = 11, 8, 16, 2
Norm = Callable[[int], nn.Module]


class SelfAttention(nn.Module):
    """Causal attention, by torch's function or by hand.

    Args:
        fused: Whether ``scaled_dot_product_attention`` is called.
        logits: What the logits are multiplied by.
        groups: Heads of keys and values, each shared by several of the queries.
    """

    def __init__(self, *, fused: bool = True, logits: float = 1.0, groups: int = HEADS) -> None:
        super().__init__()
        self.fused, self.logits, self.each = fused, logits, WIDTH // HEADS
        self.query, self.proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.key, self.value = (nn.Linear(WIDTH, groups * self.each) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Mix the tokens."""
        q, k, v = (
            layer(x).unflatten(2, (-1, self.each)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        if self.fused:
            scale = self.logits / math.sqrt(self.each)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        else:
            k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
            hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
            weights = q @ k.transpose(2, 3) * (self.logits / math.sqrt(self.each))
            y = F.softmax(weights.masked_fill(hidden, -math.inf), dim=-1) @ v
        return self.proj(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A block with its norms before the branches, behind the sums, or both branches side by side."""

    def __init__(self, norm: Norm, placement: str, branch: float, attention: dict[str, Any]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(WIDTH), norm(WIDTH)
        self.attention, self.placement, self.branch = SelfAttention(**attention), placement, branch
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Add what attention and a dense network make of the tokens."""
        if self.placement == "post":
            x = self.norm1(x + self.attention(x))
            return self.norm2(x + self.mlp(x))
        if self.placement == "parallel":
            return x + self.branch * self.attention(self.norm1(x)) + self.branch * self.mlp(self.norm2(x))
        x = x + self.branch * self.attention(self.norm1(x))
        y = self.branch * self.mlp(self.norm2(x))
        y += x
        return y


class Decoder(nn.Module):
    """A causal transformer on ``(N, L)`` words, as nanoGPT is written.

    Args:
        norm: Makes a norm of a width.
        placement: ``"pre"``, ``"post"`` or ``"parallel"``.
        depth: Number of blocks.
        final: Whether a norm stands before the head.
        tied: Whether the head is the embedding, as a function.
        branch: What the outputs of branches are multiplied by, where the norms stand before.
        embedding: Standard deviation of the embeddings.
        attention: Options of ``SelfAttention``.
    """

    def __init__(
        self, norm: Norm = nn.LayerNorm, placement: str = "pre", *, depth: int = 3, final: bool = True,
        tied: bool = False, branch: float = 1.0, embedding: float = 1.0, **attention: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        for each in (self.words, self.places):
            nn.init.normal_(each.weight, 0.0, embedding)
        self.blocks = nn.ModuleList(Block(norm, placement, branch, attention) for _ in range(depth))
        self.final = norm(WIDTH) if final else nn.Identity()
        self.head = None if tied else nn.Linear(WIDTH, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        """Return the logits ``(N, L, WORDS)`` of the next words."""
        x = self.words(words) + self.places.weight[: words.shape[1]]
        for block in self.blocks:
            x = block(x)
        x = self.final(x)
        return F.linear(x, self.words.weight) if self.head is None else self.head(x)


class Encoder(nn.Module):
    """``torch.nn.TransformerEncoder`` on ``(N, L)`` words, its output averaged over the positions.

    Args:
        depth: Number of blocks.
        first: Whether the norms stand before the branches.
        final: Whether the encoder has a norm at its end.
        dropout: Share that is dropped.
        embedding: Standard deviation of the embeddings.
    """

    def __init__(
        self, depth: int = 3, *, first: bool = True, final: bool = True, dropout: float = 0.0, embedding: float = 1.0
    ) -> None:
        super().__init__()
        options: dict[str, Any] = {"batch_first": True, "norm_first": first, "activation": "gelu"}
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout, **options)
        norm = nn.LayerNorm(WIDTH) if final else None
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(embedding * torch.randn(LENGTH, WIDTH))
        nn.init.normal_(self.words.weight, 0.0, embedding)
        self.encoder = nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        """Return the logits ``(N, 1, WORDS)``."""
        return self.head(self.encoder(self.words(words) + self.places).mean(1, keepdim=True))


class Chain(nn.Module):
    """Dense layers on ``(N, L)`` words, each read by a sum whose norm stands behind it or within the branch.

    Args:
        norms: Number of norms, each of its own sum.
        first: Whether the norms stand before the branches; then there is one more before the head.
        norm: Makes a norm of a width.
    """

    def __init__(self, norms: int, *, first: bool = False, norm: Norm = nn.LayerNorm) -> None:
        super().__init__()
        self.words, self.first, self.head = nn.Embedding(WORDS, WIDTH), first, nn.Linear(WIDTH, WORDS)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(norms))
        self.norms = nn.ModuleList(norm(WIDTH) for _ in range(norms))
        self.final = norm(WIDTH) if first else nn.Identity()

    def forward(self, words: Tensor) -> Tensor:
        """Return the logits ``(N, L, WORDS)``."""
        x = self.words(words)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = x + torch.relu(layer(norm(x))) if self.first else norm(x + torch.relu(layer(x)))
        return self.head(self.final(x))


def next_words(model: Any, batch: Tensor) -> Tensor:
    """Cross-entropy of the words that follow; of the last alone where the model puts out a single position."""
    logits = model(batch[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), batch[:, -logits.shape[1] :].flatten())


def walks(batches: int = 4, size: int = 16, seed: int = 1) -> list[Tensor]:
    """Return batches ``(size, LENGTH + 1)`` of words, each sample with a beginning and a stride of its own."""
    stream = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(batches):
        begin, stride = (torch.randint(low, high, (size, 1), generator=stream) for low, high in ((0, WORDS), (1, 4)))
        found.append((begin + stride * torch.arange(LENGTH + 1)) % WORDS)
    return found


def transformer(net: Callable[..., nn.Module] = Decoder, *, trained: int = 0, seed: int = 0, **options: Any) -> Case:
    """Return a set-up of a transformer that learns which word follows.

    Args:
        net: Makes the model.
        trained: Steps that were made before it is handed over.
        seed: Of weights and data.
        **options: ``lr`` (by default .001), ``change`` (called with the model, to plant something), ``kind`` of the
            optimizer; all others are of the model.
    """
    lr, change, kind = options.pop("lr", 1e-3), options.pop("change", None), options.pop("kind", torch.optim.AdamW)
    model = examples.seeded(lambda: net(**options), seed).train()
    loader = walks(seed=seed + 1)
    optimizer = kind(model.parameters(), lr=lr)
    with torch.enable_grad():
        for index in range(trained):
            optimizer.zero_grad()
            next_words(model, loader[index % len(loader)]).backward()
            optimizer.step()
    optimizer.zero_grad()
    if change is not None:
        change(model)
    return Case(model, next_words, loader, optimizer, walks(2, 32, seed + 2))


def scale_queries(model: nn.Module, factor: float) -> None:
    """Multiply the weights that make queries, in torch's attention, by a factor."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):
                weight = cast(Any, module.in_proj_weight)
                weight[: module.embed_dim] *= factor


class _OneHot(nn.Module):
    """Attention of one head in which each of ``LENGTH`` tokens has one logit of a size, and others of 0."""

    size: Tensor

    def __init__(self, size: Tensor) -> None:
        super().__init__()
        self.head = nn.Linear(LENGTH, WORDS)
        self.register_buffer("size", size)

    def forward(self, words: Tensor) -> Tensor:
        tokens = torch.eye(LENGTH).expand(len(words), 1, LENGTH, LENGTH)
        logits = self.size[:, None] * tokens
        return self.head((torch.softmax(logits @ tokens.transpose(2, 3), -1) @ tokens)[:, 0])


def one_hot_attention(size: float, share: float = 0.75) -> Case:
    """Return a set-up of attention with one logit in each row, and 0 elsewhere, so that its softmax is known.

    Args:
        size: The logit, in a share of the rows; in the others 1.
        share: The share, in eighths.
    """
    sizes = torch.where(torch.arange(LENGTH) < share * LENGTH, size, 1.0)
    return transformer(lambda: _OneHot(sizes))
