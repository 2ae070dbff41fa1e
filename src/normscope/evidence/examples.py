"""Small training set-ups with nothing wrong in them, in which rules plant what they find."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normscope.evidence.case import Case
from normscope.modules.rng import torch_streams_kept

Norm = Callable[[int], nn.Module]
Net = Callable[..., nn.Module]


@dataclass(frozen=True, slots=True)
class Planted:
    """A set-up with a defect in it.

    Attributes:
        make: Makes the set-up.
        places: Where a rule must find the defect; None stands for every batch norm of the model, in order.
    """

    make: Callable[[], Case]
    places: Sequence[str] | None = None

    def __call__(self) -> Case:
        """Make the set-up."""
        return self.make()


@dataclass(frozen=True, slots=True)
class Near:
    """Two set-ups on the two sides of a rule's bound, as near to it as they can be made.

    Attributes:
        make: ``make(value)`` makes a set-up that is at some distance from the bound.
        found: A value at which the rule must find the defect.
        quiet: The nearest value, beyond the bound, at which the rule must find nothing.
    """

    make: Callable[[Any], Case]
    found: Any
    quiet: Any


def loss_fn(model: Any, batch: Any) -> Tensor:
    """Cross-entropy of ``(inputs, labels)``."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


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


def seeded(make: Callable[[], Any], seed: int = 0) -> Any:
    """Make a network from a seed of its own, leaving the global stream as it was."""
    with torch_streams_kept():
        torch.manual_seed(seed)
        return make()


def healthy(
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


def stepped(case: Case, losses: Callable[[Any, Any], Iterable[Tensor]]) -> Case:
    """Give a set-up a training step of its own: one update for all losses that ``losses(model, batch)`` yields."""

    def step(model: nn.Module, batch: Any) -> None:
        assert case.optimizer is not None
        case.optimizer.zero_grad()
        for loss in losses(model, batch):
            loss.backward()
        case.optimizer.step()

    case.step = step
    return case


def batch_norm(channels: int = 12, *, mean: float = 0.0, variance: float = 1.0, **options: Any) -> Any:
    """Return a ``BatchNorm1d`` with these running statistics; ``options`` are its own."""
    norm: Any = nn.BatchNorm1d(channels, **options)
    norm.running_mean.fill_(mean)
    norm.running_var.fill_(variance)
    return norm


def mean_square(model: Any, batch: Any) -> Tensor:
    """Mean square of the output: its value is known where a norm makes the output."""
    return model(batch).float().square().mean()


def alone(norm: nn.Module, loader: Any, *, then: Sequence[nn.Module] = (), **options: Any) -> Case:
    """Return a set-up of a norm that is given the data themselves, so that all of its statistics are planted.

    Args:
        norm: The norm; its name is ``"0"``.
        loader: Batches ``(N, C, ...)``.
        then: Modules behind it.
        options: Anything else for ``Case``; left out, the loss is the mean square of the output, and plain gradient
            descent trains at a rate of 0.01.
    """
    model = nn.Sequential(norm, *then).train()
    given: dict[str, Any] = {"loss_fn": mean_square, "loader": loader}
    parameters = list(model.parameters())
    if parameters:
        given["optimizer"] = torch.optim.SGD(parameters, lr=0.01)
    return Case(model, **given | options)


def two_values(mean: float | Tensor, deviation: float | Tensor, size: int = 32, channels: int = 12) -> Tensor:
    """Return ``(size, channels)`` values, half of them ``mean - deviation`` and half ``mean + deviation``.

    Args:
        mean: Mean of all channels, or of each.
        deviation: Standard deviation (divisor N) of all channels, or of each.
        size: Number of rows, even.
        channels: Number of channels.
    """
    signs = torch.tensor([-1.0, 1.0]).repeat(size // 2)[:, None]
    return mean + deviation * signs.expand(size, channels)


class ScaledGradient(nn.Module):
    """Passes values on as they are, and gradients times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return the input."""
        return x.detach() + self.factor * (x - x.detach())


def deep_with_scaled_gradients(factor: float, depth: int, *, norm: bool = True, width: int = 8) -> Case:
    """Return a set-up of ``depth`` orthogonal layers in which gradients change by a factor from layer to layer.

    Args:
        factor: By which the gradient grows at each layer on its way to the input.
        depth: Number of layers that bear weight, without the norms.
        norm: Whether each layer but the last has a batch norm behind it.
        width: Width of all layers.
    """
    parts: list[nn.Module] = []
    for index in range(depth):
        linear = seeded(lambda: nn.Linear(width, width, bias=False), index)
        nn.init.orthogonal_(linear.weight, generator=torch.Generator().manual_seed(index))
        parts += [linear, *([nn.BatchNorm1d(width)] if norm and index < depth - 1 else []), ScaledGradient(factor)]
    stream = torch.Generator().manual_seed(0)
    loader = [torch.randn(64, width, generator=stream) for _ in range(4)]
    target = torch.randn(64, width, generator=stream)
    model = nn.Sequential(*parts).train()

    def loss_fn(model: Any, batch: Any) -> Tensor:
        return (model(batch) * target).mean()

    return Case(model, loss_fn, loader, torch.optim.SGD(model.parameters(), lr=1e-3))


def norms(model: nn.Module) -> list[Any]:
    """Return a model's batch norms."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
