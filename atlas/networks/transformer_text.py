"""A small transformer with layer norm before each block (pre-norm), on characters of an English text."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import normscope as ns
from normscope.studies.lab.text import CONTEXT, load_text


class CharacterModel(nn.Module):
    """Predicts at each place the character that follows.

    Args:
        symbols: Number of characters of the alphabet.
        width: Length of the vector at a place.
        depth: Blocks of attention and feed-forward.
        heads: Heads of an attention.
    """

    def __init__(self, symbols: int, width: int = 64, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.symbols = nn.Embedding(symbols, width)
        self.places = nn.Embedding(CONTEXT, width)
        options = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, **options)
            for _ in range(depth)  # type: ignore[arg-type]
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, symbols)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)

    def forward(self, codes: Tensor) -> Tensor:
        """Return logits (N, T, symbols) for codes (N, T)."""
        out = self.symbols(codes) + self.places.weight
        for block in self.blocks:
            out = block(out, src_mask=self.mask, is_causal=True)
        logits: Tensor = self.head(self.norm(out))
        return logits


def loss_fn(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """Return the cross-entropy of the next characters."""
    codes, targets = batch
    return nn.functional.cross_entropy(model(codes).flatten(0, 1), targets.flatten())


def make_case() -> ns.Case:
    """Return the training set-up: AdamW."""
    return _case(depth=4)


def make_case_with_twelve_blocks() -> ns.Case:
    """Return the same set-up of a network with twelve blocks."""
    return _case(depth=12)


def _case(depth: int) -> ns.Case:
    # The same windows for every arm and seed: seeds differ in first weights and batches.
    text = load_text()
    split = text.split(0, test=256)
    train, test = TensorDataset(split.x_train, split.y_train), TensorDataset(split.x_test, split.y_test)
    model = CharacterModel(text.classes, depth=depth)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    loader = DataLoader(train, batch_size=32, shuffle=True, drop_last=True)
    return ns.Case(model, loss_fn, loader, optimizer, DataLoader(test, batch_size=32))
