"""Networks of many kinds, with batches and a loss for each."""

import random
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Shared(nn.Module):
    """A recurrent layer, and a linear layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(12, 8)
        self.shared = nn.Linear(8, 8)
        self.recurrent = nn.LSTM(8, 8, batch_first=True)
        self.norm = nn.BatchNorm1d(8)
        self.outlet = nn.Linear(8, 4)
        self.unused = nn.Linear(3, 3)
        self.inlet.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.shared(torch.tanh(self.shared(torch.tanh(self.inlet(x))))))
        h, _ = self.recurrent(h.unsqueeze(1).repeat(1, 3, 1))
        return self.outlet(self.norm(h[:, -1]))


class Residual(nn.Module):
    """A branch that is added in place, a dropout in the container's own code, and a norm in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(6)
        self.middle = nn.Conv2d(6, 6, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(6)
        self.frozen = nn.BatchNorm2d(6).eval()
        self.dropout = nn.Dropout(0.2)
        self.outlet = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.norm1(self.inlet(x)))
        h = self.norm2(self.middle(F.dropout(skip, 0.3, self.training)))
        h += skip
        h = self.dropout(F.relu_(self.frozen(h)))
        return self.outlet(h.mean((2, 3)))


class Recurrent(nn.Module):
    """Two recurrent kinds over a sequence, with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRU(3, 6, batch_first=True)
        self.dropout = nn.Dropout(0.2)
        self.second = nn.LSTM(6, 6, batch_first=True)
        self.outlet = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.first(x)
        h, (last, _) = self.second(self.dropout(h))
        return self.outlet(last[-1])


class Transformer(nn.Module):
    """Embeddings of position, two encoder layers with attention and dropout, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(3, 8)
        self.position = nn.Embedding(5, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True) for _ in range(2)
        )
        self.norm, self.outlet = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inlet(x) + self.position(torch.arange(x.shape[1], device=x.device))
        for layer in self.layers:
            h = layer(h)
        return self.outlet(self.norm(h).mean(1))


class NumpyNoise(nn.Module):
    """Draws from NumPy's and Python's streams."""

    def forward(self, x: Tensor) -> Tensor:
        return x * float(1 + 0.1 * np.random.randn() + 0.1 * random.random()) if self.training else x  # noqa: NPY002


def mlp(inputs: int = 12, width: int = 10, *, dropout: float = 0.0) -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(3):
        layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True)]
        layers += [nn.Dropout(dropout)] if dropout else []
        inputs = width
    return nn.Sequential(*layers, nn.Linear(width, 4))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 9, 4),
    )


def uneven() -> nn.Module:
    """Widths that all differ, norms with eps and momentum of their own, the second in eval mode, every activation."""
    return nn.Sequential(
        nn.Linear(5, 7),
        nn.BatchNorm1d(7, eps=0.01, momentum=0.3),
        nn.Tanh(),
        nn.Linear(7, 6, bias=False),
        nn.BatchNorm1d(6, eps=0.02).eval(),
        nn.Sigmoid(),
        nn.Linear(6, 3),
        nn.BatchNorm1d(3, momentum=0.2),
        nn.LeakyReLU(0.2),
        nn.Linear(3, 4),
    )


def uneven_cnn() -> nn.Module:
    """Kernels, strides and images that are not square, a dropout, and a group norm beside a batch norm."""
    return nn.Sequential(
        nn.Conv2d(2, 5, (3, 2)),
        nn.BatchNorm2d(5, eps=0.01, momentum=0.3),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.Conv2d(5, 3, (2, 3), stride=(1, 2), bias=False),
        nn.GroupNorm(1, 3),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(24, 4),
    )


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (12,)),
    "cnn": (cnn, (3, 6, 6)),
    "channels": (lambda: cnn().to(memory_format=torch.channels_last), (3, 6, 6)),
    "dropout": (lambda: mlp(dropout=0.3), (12,)),
    "shared": (Shared, (12,)),
    "residual": (Residual, (3, 6, 6)),
    "numpy": (lambda: nn.Sequential(mlp(), NumpyNoise()), (12,)),
    "recurrent": (Recurrent, (5, 3)),
    "transformer": (Transformer, (5, 3)),
    "eval": (lambda: mlp().eval(), (12,)),
    "uneven": (uneven, (5,)),
    "uneven_cnn": (uneven_cnn, (2, 7, 6)),
}


def make(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build a net whose norms have a gain and a shift away from one and zero."""
    torch.manual_seed(seed)
    model = NETS[name][0]().to(dtype)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
    return model


def batches(
    name: str, count: int, *, size: int = 16, seed: int = 1, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[Tensor, Tensor]]:
    """Draw batches of normal inputs and four classes for a net of this module."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(size, *NETS[name][1], generator=generator, dtype=dtype)
        yield x, torch.randint(4, (size,), generator=generator)


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean cross entropy."""
    return F.cross_entropy(model(batch[0]), batch[1])
