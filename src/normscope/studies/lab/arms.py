"""What most studies' cells do: build the preset's network with a norm of the arm's, train it, measure."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from normscope import layers
from normscope.records import Cell, Record
from normscope.studies.lab.models import Place, build
from normscope.studies.lab.norms import Factory
from normscope.studies.lab.train import train

if TYPE_CHECKING:
    from normscope.studies.lab.data import Dataset, Split


def split_of(cell: Cell, data: "Dataset", device: str = "cpu") -> "Split":
    """Return the cell's split of the data, of the sizes in its settings (``train``, ``test``; None for all)."""
    settings = cell.settings
    return data.split(cell.seed, train=settings.get("train"), test=settings.get("test")).to(device)


def network(cell: Cell, data: "Dataset", norm: Factory, device: str = "cpu", **changes: Any) -> nn.Module:
    """Return the network of the cell's settings, with the initial weights of its seed, in train mode.

    Args:
        cell: Its settings have ``network``: a name and sizes.
        data: Gives shapes.
        norm: What stands between each linear layer and its activation.
        device: Where to put it.
        changes: Sizes and options in place of those of the settings.
    """
    sizes: dict[str, Any] = dict(cell.settings["network"]) | changes
    return build(norm=norm, shape=data.shape, classes=data.classes, seed=cell.seed, **sizes).to(device).train()


def fit(model: nn.Module, split: "Split", cell: Cell, **changes: Any) -> list[Record]:
    """Train by the cell's settings (``steps``, ``lr``, ``batch``), and by its point's where that says otherwise.

    Args:
        model: Trained in place.
        split: The data.
        cell: What to train by.
        changes: Arguments of ``lab.train.train`` in place of those.
    """
    options: dict[str, Any] = {"cell": cell.id, "seed": cell.seed, **schedule(cell)}
    return train(model, split, **options | changes)


def schedule(cell: Cell) -> dict[str, Any]:
    """Return steps, learning rate and batch size of a cell: its point's, or else its settings'."""
    given: Mapping[str, Any] = {**cell.settings, **cell.point}
    return {
        "steps": int(given.get("steps", 0)),
        "lr": float(given.get("lr", 0.1)),
        "batch_size": int(given.get("batch", 64)),
    }


def batch_norm(
    *,
    gain: float = 1.0,
    shift: float = 0.0,
    learn_gain: bool = True,
    learn_shift: bool = True,
    eps: float = 1e-5,
    dtype: torch.dtype | None = None,
) -> Factory:
    """Batch normalization whose scale and shift begin somewhere and are learnt or not.

    Args:
        gain: Where the scale begins.
        shift: Where the shift begins.
        learn_gain: Whether the scale is learnt.
        learn_shift: Whether the shift is learnt.
        eps: Added to the variance.
        dtype: Of parameters and statistics.
    """

    def make(place: Place) -> nn.Module:
        kind = layers.BatchNorm2d if place.spatial else layers.BatchNorm1d
        module = kind(place.features, eps=eps, dtype=dtype)
        with torch.no_grad():
            module.weight.fill_(gain)
            module.bias.fill_(shift)
        module.weight.requires_grad_(learn_gain)
        module.bias.requires_grad_(learn_shift)
        return module

    return make


def first_batch(split: "Split", cell: Cell, size: int) -> tuple[Tensor, Tensor]:
    """Return the first training examples of the split, which are in the seed's own order."""
    return split.x_train[:size], split.y_train[:size]


class Noted(nn.Module):
    """Keeps what the module inside puts out, with its gradient after a backward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.output: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the module inside."""
        out: Tensor = self.inner(x)
        self.output = out
        if out.requires_grad:
            out.retain_grad()
        return out


def noted(factory: Factory) -> Factory:
    """Wrap what a factory makes in ``Noted``."""
    return lambda place: Noted(factory(place))


def recorder(cell: Cell, probe: str) -> Callable[..., Record]:
    """Return a function that makes a record of the cell: ``record(name, value, step=0, site="")``."""

    def record(name: str, value: float | Tensor, step: int = 0, site: str = "") -> Record:
        return Record(cell.id, step, probe, site, name, float(value))

    return record
