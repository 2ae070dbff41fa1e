"""Small networks and data on which rules show what they find."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normscope.evidence.case import Case

Norm = Callable[[int], nn.Module]
Net = Callable[..., nn.Module]


def loss_fn(model: Any, batch: Any) -> Tensor:
    """Cross-entropy of ``(inputs, labels)``."""
    return cross_entropy(model(batch[0]), batch[1])


def mlp(norm: Norm = nn.BatchNorm1d, *, depth: int = 3, width: int = 16, bias: bool = False) -> nn.Module:
    """A dense network on ``(N, 12)``."""
    layers: list[nn.Module] = []
    inputs = 12
    for _ in range(depth):
        layers += [nn.Linear(inputs, width, bias=bias), norm(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, 4))


def cnn(norm: Norm = nn.BatchNorm2d, *, bias: bool = False) -> nn.Module:
    """Two convolutions on ``(N, 3, 8, 8)``."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=bias),
        norm(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 12, 3, padding=1, bias=bias),
        norm(12),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 16, 4),
    )


class ResidualCNN(nn.Module):
    """A stem and two residual blocks on ``(N, 3, 8, 8)``."""

    def __init__(self, norm: Norm = nn.BatchNorm2d, *, bias: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=bias), norm(8), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(8, 8, 3, padding=1, bias=bias),
                norm(8),
                nn.ReLU(),
                nn.Conv2d(8, 8, 3, padding=1, bias=bias),
                norm(8),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map images to logits."""
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean((2, 3)))


def residual(norm: Norm = nn.BatchNorm2d, *, bias: bool = False) -> nn.Module:
    """Make a ``ResidualCNN``."""
    return ResidualCNN(norm, bias=bias)


class SequenceNet(nn.Module):
    """Convolutions along a sequence ``(N, 12, L)`` with one-dimensional norms."""

    def __init__(self, norm: Norm = nn.BatchNorm1d, *, bias: bool = False) -> None:
        super().__init__()
        self.inlet = nn.Conv1d(12, 10, 3, padding=1, bias=bias)
        self.norm1 = norm(10)
        self.middle = nn.Conv1d(10, 10, 3, padding=1, bias=bias)
        self.norm2 = norm(10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map sequences to logits."""
        x = torch.relu(self.norm1(self.inlet(x)))
        x = torch.relu(self.norm2(self.middle(x)))
        return self.head(x.mean(2))


def sequence(norm: Norm = nn.BatchNorm1d, *, bias: bool = False) -> nn.Module:
    """Make a ``SequenceNet``."""
    return SequenceNet(norm, bias=bias)


SHAPES: dict[Any, tuple[int, ...]] = {mlp: (12,), cnn: (3, 8, 8), residual: (3, 8, 8), sequence: (12, 9)}
NETS: tuple[Net, ...] = (mlp, cnn, residual)


def data(
    shape: Sequence[int], *, batches: int = 12, size: int = 32, seed: int = 0, mean: float = 0.3, scale: float = 1.5
) -> list[tuple[Tensor, Tensor]]:
    """Return shuffled batches whose labels can be learnt: their class moves the mean."""
    stream = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(batches):
        y = torch.randint(4, (size,), generator=stream)
        x = torch.randn(size, *shape, generator=stream)
        x = x * scale + mean + 0.5 * (y.view(-1, *[1] * len(shape)) - 1.5)
        found.append((x, y))
    return found


def seeded(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Make a network from a seed of its own, leaving the global stream as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def case(
    net: Net = mlp,
    *,
    trained: int = 60,
    lr: float = 0.1,
    size: int = 32,
    change: Callable[[nn.Module], Any] | None = None,
    seed: int = 0,
    shape: Sequence[int] | None = None,
    **options: Any,
) -> Case:
    """Return a healthy set-up of a network: trained for some steps, in train mode, with data to evaluate on.

    Args:
        net: One of this file's makers, called with ``norm=`` if that is among ``options``.
        trained: Steps of training before it is handed over.
        lr: Learning rate.
        size: Samples of a batch.
        change: Called with the trained model, to plant something.
        seed: Of weights and data.
        shape: Of a sample, where the network is none of this file's.
        options: ``norm``, ``bias``, ... for the maker; anything else for ``Case``.
    """
    makes = {key: options.pop(key) for key in ("norm", "bias", "depth", "width") if key in options}
    model = seeded(lambda: net(**makes), seed)
    shape = SHAPES[net] if shape is None else shape
    loader = data(shape, size=size, seed=seed + 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    model.train()
    with torch.enable_grad():
        for index in range(trained):
            optimizer.zero_grad()
            loss_fn(model, loader[index % len(loader)]).backward()
            optimizer.step()
    optimizer.zero_grad()
    if change is not None:
        change(model)
    given: dict[str, Any] = {
        "loader": loader,
        "optimizer": optimizer,
        "eval_loader": data(shape, batches=4, size=64, seed=seed + 2),
    }
    return Case(model, loss_fn, **given | options)


def norms(model: nn.Module) -> list[Any]:
    """Return a model's batch norms."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
