"""Other tools that attach to a training, measured beside the probes where they are installed: cost and trace."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import nn

AfterStep = Callable[[], object]
_WARM_UP = 2  # steps before the first that is timed
_FEWEST, _ENOUGH = 3, 10.0  # timed steps, and seconds of processor time, after which no further step is timed


@dataclass(frozen=True, slots=True)
class PeerCost:
    """What another tool costs at each step here, and what it leaves behind.

    Attributes:
        tool: Its name and version.
        model: Name of the model.
        ratio: Median of (step with the tool) / (plain step).
        low: First quartile.
        high: Third quartile.
        trace: What it leaves in the training and, once it is detached, on the model; ``"none"``.
    """

    tool: str
    model: str
    ratio: float
    low: float
    high: float
    trace: str


@contextmanager
def _neural_observatory(model: nn.Module) -> Iterator[AfterStep]:
    from neural_observatory import Observatory

    watching = Observatory(model)
    watching.watch()
    try:
        yield watching.step
    finally:
        watching.stop()


@contextmanager
def _torchinstruments(model: nn.Module) -> Iterator[AfterStep]:
    from torchinstruments import AlwaysSampler, inject_observer, remove_observer

    with tempfile.TemporaryDirectory() as folder:  # by default it samples by the clock, and writes what it sampled
        inject_observer(model, sampler=AlwaysSampler(), output_dir=folder)
        try:
            yield lambda: None
        finally:
            remove_observer(model)


_TOOLS: Mapping[str, Callable[[nn.Module], Any]] = {
    "neural-observatory": _neural_observatory,
    "torchinstruments": _torchinstruments,
}


def installed() -> dict[str, Callable[[nn.Module], Any]]:
    """Return the tools that are installed, by name and version: each a context, which gives what ends a step."""
    found = {}
    for name, attach in _TOOLS.items():
        try:
            found[f"{name} {metadata.version(name)}"] = attach
        except metadata.PackageNotFoundError:
            continue
    return found


def measure_peers(
    name: str,
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    loss: Callable[[Any, Any], torch.Tensor],
    rounds: int,
) -> list[PeerCost]:
    """Measure the other tools that are installed.

    Args:
        name: Name of the model.
        build: Makes the model.
        shape: Shape of a batch of its inputs; the targets are ten classes.
        loss: ``loss(model, (inputs, targets))``.
        rounds: Timed steps of each; fewer where they take long.
    """
    batch = torch.randn(shape), torch.randint(10, shape[:1])

    def step(trained: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        loss(trained, batch).backward()
        optimizer.step()

    return [measure_peer(tool, attach, name, build, step, rounds) for tool, attach in installed().items()]


def measure_peer(
    tool: str,
    attach: Callable[[nn.Module], Any],
    name: str,
    build: Callable[[], nn.Module],
    step: Callable[[nn.Module, torch.optim.Optimizer], None],
    rounds: int,
) -> PeerCost:
    """Train two models alike, one of them with a tool, step by step in turn, and compare times and what they become.

    Args:
        tool: Its name.
        attach: A context around the training that gives what is to be called after each step.
        name: Name of the model.
        build: Makes the model.
        step: Makes a training step.
        rounds: Timed steps of each; fewer where they take long.
    """
    models: list[tuple[nn.Module, torch.optim.Optimizer]] = []
    times: tuple[list[float], list[float]] = [], []
    for _ in range(2):
        torch.manual_seed(0)
        model = build()
        models.append((model, torch.optim.SGD(model.parameters(), 0.01)))
    with attach(models[1][0]) as after_step:
        for done in range(_WARM_UP + rounds):
            for which, (model, optimizer) in enumerate(models):
                began = time.process_time()
                step(model, optimizer)
                if which:
                    after_step()
                if done >= _WARM_UP:
                    times[which].append(time.process_time() - began)
            if len(times[1]) >= _FEWEST and sum(times[1]) > _ENOUGH:
                break
    ratios = [watched / plain for plain, watched in zip(*times, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return PeerCost(tool, name, median, low, high, _trace(models[0][0], models[1][0]))


def _trace(plain: nn.Module, watched: nn.Module) -> str:
    found = []
    if not all(map(torch.equal, plain.state_dict().values(), watched.state_dict().values())):
        found.append("training differs")
    pairs = zip(plain.parameters(), watched.parameters(), strict=True)
    if any(one.requires_grad != other.requires_grad for one, other in pairs):
        found.append("requires_grad changed")
    if _hooks(watched) != _hooks(plain):
        found.append("hooks remain")
    return ", ".join(found) or "none"


def _hooks(model: nn.Module) -> int:
    return sum(
        len(hooks)
        for module in model.modules()
        for name, hooks in vars(module).items()
        if name.endswith("_hooks") and isinstance(hooks, dict)
    )
