"""What the set-ups share: small data, a training loop, and the list of set-ups."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import normscope as ns

Batches = list[Any]


@dataclass(frozen=True)
class SetUp:
    """A training set-up, and what a check may say of it.

    Attributes:
        name: The function's name.
        says: What it is, in words.
        make: Makes the set-up after a short training, by seed: the case, and what else its step changes.
        right: Codes any of which names the planted defect; empty for a healthy set-up.
        true: Codes of findings that hold although they were not planted, each with the reason.
    """

    name: str
    says: str
    make: Callable[..., tuple[ns.Case, list[Any]]]
    right: frozenset[str] = frozenset()
    true: Mapping[str, str] = field(default_factory=dict)


HEALTHY: dict[str, SetUp] = {}
PLANTED: dict[str, SetUp] = {}


def _made(function: Callable[[], Any]) -> Callable[..., tuple[ns.Case, list[Any]]]:
    def make(seed: int = 0) -> tuple[ns.Case, list[Any]]:
        torch.manual_seed(seed)
        made = function()
        return made if isinstance(made, tuple) else (made, [])

    return make


def _words(function: Callable[[], Any]) -> str:
    return " ".join((function.__doc__ or function.__name__).split()).rstrip(".")


def healthy(**true: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """List a set-up without a defect; by code the findings that hold all the same, with the reason."""

    def listed(function: Callable[[], Any]) -> Callable[[], Any]:
        HEALTHY[function.__name__] = SetUp(function.__name__, _words(function), _made(function), true=true)
        return function

    return listed


def planted(*right: str, **true: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """List a set-up with a defect that any of the codes names."""

    def listed(function: Callable[[], Any]) -> Callable[[], Any]:
        PLANTED[function.__name__] = SetUp(function.__name__, _words(function), _made(function), frozenset(right), true)
        return function

    return listed


# Data.


def images(
    batches: int = 8, size: int = 32, px: int = 8, *, seed: int = 0, classes: int = 4, channels: int = 3,
    scale: float = 1.0, shift: float = 0.0, sort: bool = False,
) -> Batches:  # fmt: skip
    """Return batches of images, each a smooth pattern of its class under noise, and their classes."""
    patterns = torch.randn(classes, channels, px // 4, px // 4, generator=torch.Generator().manual_seed(99))
    patterns = F.interpolate(patterns, size=(px, px), mode="bilinear")
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (batches * size,), generator=draw)
    labels = labels.sort().values if sort else labels
    noise = 1.2 * torch.randn(len(labels), channels, px, px, generator=draw)
    pictures = (patterns[labels] + noise) * scale + shift
    return list(zip(pictures.split(size), labels.split(size), strict=True))


def vectors(
    batches: int = 8, size: int = 64, dim: int = 12, *, seed: int = 0, classes: int = 4, scale: float = 1.0,
    shift: float = 0.0, sort: bool = False,
) -> Batches:  # fmt: skip
    """Return batches of vectors around the centre of their class, and their classes."""
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(98))
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (batches * size,), generator=draw)
    labels = labels.sort().values if sort else labels
    data = (0.8 * centres[labels] + torch.randn(len(labels), dim, generator=draw)) * scale + shift
    return list(zip(data.split(size), labels.split(size), strict=True))


def tokens(batches: int = 8, size: int = 16, length: int = 16, *, seed: int = 0, vocabulary: int = 24) -> Batches:
    """Return batches of token sequences of a noisy arithmetic rule."""
    draw = torch.Generator().manual_seed(seed)
    rows = [torch.randint(vocabulary, (batches * size,), generator=draw)]
    for _ in range(length):
        jump = torch.randint(1, 3, (batches * size,), generator=draw)
        rows.append((rows[-1] * 3 + jump) % vocabulary)
    return list(torch.stack(rows, 1).split(size))


def waves(batches: int = 8, size: int = 32, length: int = 64, *, seed: int = 0, classes: int = 4) -> Batches:
    """Return batches of one-channel signals whose class is their frequency."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (batches * size,), generator=draw)
    phase = 6.28 * torch.rand(len(labels), 1, generator=draw)
    time = torch.linspace(0, 1, length)
    signal = torch.sin(6.28 * (2 + 3 * labels[:, None]) * time + phase)
    signal = signal + 0.3 * torch.randn(signal.shape, generator=draw)
    return list(zip(signal[:, None].split(size), labels.split(size), strict=True))


# Training.


def cross_entropy(model: Any, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def squared_error(model: Any, batch: Any) -> torch.Tensor:
    return F.mse_loss(model(batch[0]), batch[1])


def sgd(model: nn.Module, lr: float = 0.05) -> torch.optim.Optimizer:
    """Return SGD with momentum on what is to be trained."""
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr, momentum=0.9)


def train(
    model: nn.Module, loss_fn: Callable[[Any, Any], torch.Tensor], loader: Iterable[Any],
    optimizer: torch.optim.Optimizer, steps: int = 60, *, floor: float = 0.05,
) -> None:  # fmt: skip
    """Train as scripts do: cosine decay of the rate, the modes as they are."""
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, steps, eta_min=floor * optimizer.param_groups[0]["lr"]
    )
    for batch in itertools.islice(_endless(loader), steps):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()
        schedule.step()


def run(step: Callable[[Any, Any], Any], model: nn.Module, loader: Iterable[Any], steps: int = 60) -> None:
    """Make steps of the user's own."""
    for batch in itertools.islice(_endless(loader), steps):
        step(model, batch)


def classifier(
    model: nn.Module, data: Callable[..., Batches] = images, *, steps: int = 60, lr: float = 0.05,
    optimizer: torch.optim.Optimizer | None = None, loss_fn: Callable[[Any, Any], torch.Tensor] = cross_entropy,
    **options: Any,
) -> ns.Case:  # fmt: skip
    """Return the set-up of a classifier after its training."""
    loader, held = data(seed=1, **options), data(seed=2, **options)
    optimizer = optimizer or sgd(model, lr)
    model.train()
    train(model, loss_fn, loader, optimizer, steps)
    return ns.Case(model, loss_fn, loader, optimizer, held)


def _endless(loader: Iterable[Any]) -> Iterable[Any]:
    while True:
        yield from loader
