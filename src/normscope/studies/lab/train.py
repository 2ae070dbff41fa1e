"""The one training loop: deterministic per seed, watched by probes, honest about divergence."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normscope._errors import NonFiniteError
from normscope.probes import AbstractProbe, ProbeWarning, Recorder
from normscope.records import Record
from normscope.studies.lab.data import Split
from normscope.studies.lab.evaluate import accuracy, population_statistics
from normscope.studies.lab.meters import AbstractMeter
from normscope.studies.lab.streams import generator

Batch = tuple[Tensor, Tensor]
Watcher = Callable[[int, nn.Module], Iterable[Record]]
Criterion = Callable[[Tensor, Tensor], Tensor]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


class _DivergedError(Exception):
    """Leaves the step of a run whose loss is no longer a number."""


def batch_indices(size: int, batch: int, steps: int, seed: int) -> Tensor:
    """Return which examples each step sees: shuffled epochs, the incomplete last batch of an epoch left out.

    Args:
        size: Number of training examples.
        batch: Examples of a step; the whole set if it has fewer.
        steps: Number of steps.
        seed: Seed of the replicate; the order depends on nothing else.

    Returns:
        Indices (steps, min(batch, size)).
    """
    batch = min(batch, size)
    per_epoch = size // batch
    source = generator(seed, "batches")
    epochs = [
        torch.randperm(size, generator=source)[: per_epoch * batch].view(per_epoch, batch)
        for _ in range(math.ceil(steps / per_epoch))
    ]
    return torch.cat(epochs)[:steps] if epochs else torch.empty(0, batch, dtype=torch.int64)


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of a batch (inputs, labels)."""
    x, y = batch
    return cross_entropy(model(x), y)


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return half the sum of squared errors, over samples and outputs (a sum, as for the deep linear network)."""
    return 0.5 * (outputs - targets).square().sum()


def train(
    model: nn.Module,
    data: Split,
    *,
    cell: str,
    seed: int,
    steps: int,
    lr: float,
    batch_size: int,
    probes: Sequence[AbstractProbe] = (),
    every: int = 50,
    probe_until: int | None = None,
    meters: Sequence[AbstractMeter] = (),
    watch: Watcher | None = None,
    evaluate_every: int = 0,
    criterion: Criterion = cross_entropy,
    optimizer: MakeOptimizer | None = None,
) -> list[Record]:
    """Train, by plain SGD if nothing else is asked for, and return everything recorded, in order.

    Records of the loop itself, probe ``training``: ``loss`` and ``accuracy`` of every step's batch before the update;
    ``test_loss`` and ``test_accuracy`` every ``evaluate_every`` steps; at the end ``val_loss``, ``val_accuracy``,
    ``test_loss``, ``test_accuracy`` (with re-estimated population statistics), and ``diverged``: 0, or 1 at the step
    whose loss was not finite, where the run stops. A reader takes a run that stopped for censored at that step.

    Args:
        model: Network of logits; trained in place.
        data: What to train and evaluate on.
        cell: Name of the run in its records.
        seed: Seed of the replicate, for the order of batches.
        steps: Number of updates.
        lr: Learning rate of plain SGD.
        batch_size: Examples of a step.
        probes: Probes that read a step, on their schedule.
        every: Steps between two readings.
        probe_until: Step from which nothing is probed any more; None for never.
        meters: Cheap instruments that read every step's own forward pass.
        watch: Called before every update with (step, model), gradients in place; its records are kept.
        evaluate_every: Steps between two evaluations; 0 for only at the end.
        criterion: Loss of (outputs, targets). Where targets are not labels there is no accuracy.
        optimizer: Makes another optimizer of the model; it sees to the learning rate itself.

    Raises:
        NonFiniteError: The loss is not finite before the first update: the data or the initial weights are at fault,
            not the training.
    """
    updates = torch.optim.SGD(model.parameters(), lr=lr) if optimizer is None else optimizer(model)
    order = batch_indices(len(data.y_train), batch_size, steps, seed).to(data.y_train.device)
    run = _Run(model, updates, criterion, cell, meters, watch)
    scope = None
    if probes:
        scope = Recorder(model, run.loss, updates, probes=list(probes), every=every, cell=cell)
    model.train()
    with _attached(meters, model):
        for step, rows in enumerate(order):
            if evaluate_every and step and step % evaluate_every == 0:
                run.records += evaluate(model, data, cell, step, ("test",), criterion)
            batch = (data.x_train[rows], data.y_train[rows])
            if probe_until is not None and step >= probe_until:
                scope = None
            try:
                with _strict(), scope.step(batch) if scope is not None else nullcontext():
                    run.take(step, batch)
            except _DivergedError:
                run.note(step, "diverged", 1.0)
                return run.records
            if scope is not None:
                run.records += scope.drain()
    run.records += evaluate(model, data, cell, steps, criterion=criterion)
    run.note(steps, "diverged", 0.0)
    return run.records


@dataclass
class _Run:
    """A run under way: the network, what updates and watches it, and the records so far.

    Attributes:
        model: The network.
        updates: Its optimizer.
        criterion: Loss of (outputs, targets).
        cell: Name of the run in its records.
        meters: Read every step's own forward pass.
        watch: Called before every update.
        records: Everything recorded, in order.
    """

    model: nn.Module
    updates: torch.optim.Optimizer
    criterion: Criterion
    cell: str
    meters: Sequence[AbstractMeter]
    watch: Watcher | None
    records: list[Record] = field(default_factory=list)

    def note(self, step: int, name: str, value: float) -> None:
        """Record a number of the loop itself."""
        self.records.append(Record(self.cell, step, "training", "", name, value))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of a batch, for probes."""
        return self.criterion(model(batch[0]), batch[1])

    def take(self, step: int, batch: Batch) -> None:
        """Take one step: forward with meters, backward, whoever watches, update.

        Raises:
            NonFiniteError: The loss is not finite before the first update.
            _DivergedError: It is not finite at a later step.
        """
        self.updates.zero_grad(set_to_none=True)
        logits = self._forward(step, batch[0])
        loss = self.criterion(logits, batch[1])
        value = loss.item()
        self.note(step, "loss", value)
        if not batch[1].is_floating_point():
            self.note(step, "accuracy", accuracy(logits, batch[1]))
        if not math.isfinite(value):
            raise _DivergedError if step else not_finite_at_start()
        loss.backward()
        for meter in self.meters:
            self.records += meter.read(self.cell, step)
        if self.watch is not None:
            self.records += self.watch(step, self.model)
        self.updates.step()

    def _forward(self, step: int, x: Tensor) -> Tensor:
        """Return the outputs of the step's own forward pass, the only one that meters listen to."""
        for meter in self.meters:
            meter.active = meter.wants(step)
        outputs: Tensor = self.model(x)
        for meter in self.meters:
            meter.active = False
        return outputs


def not_finite_at_start() -> NonFiniteError:
    """Return the error of a run that has no loss to begin with: no training is at fault there."""
    return NonFiniteError("the loss is not finite before the first update: look for NaN or huge values in the data")


@contextmanager
def _attached(meters: Sequence[AbstractMeter], model: nn.Module) -> Iterator[None]:
    """Let meters listen to a network as long as this lasts."""
    for meter in meters:
        meter.attach(model)
    try:
        yield
    finally:
        for meter in meters:
            meter.close()


def evaluate(
    model: nn.Module,
    data: Split,
    cell: str,
    step: int,
    parts: Sequence[str] = ("val", "test"),
    criterion: Criterion = cross_entropy,
) -> list[Record]:
    """Return loss and, for labels, accuracy on parts of the data, with re-estimated population statistics.

    Args:
        model: Network of logits; left as it was.
        data: What to evaluate on.
        cell: Name of the run in its records.
        step: Number of updates that it has had.
        parts: ``"val"`` or ``"test"``, each.
        criterion: Loss of (outputs, targets).
    """
    records = []
    with population_statistics(model, data.x_train), torch.no_grad():
        for part in parts:
            x, y = getattr(data, f"x_{part}"), getattr(data, f"y_{part}")
            logits = torch.cat([model(chunk) for chunk in x.split(1000)])
            records.append(Record(cell, step, "training", "", f"{part}_loss", criterion(logits, y).item()))
            if not y.is_floating_point():
                records.append(Record(cell, step, "training", "", f"{part}_accuracy", accuracy(logits, y)))
    return records


@contextmanager
def _strict() -> Iterator[None]:
    """Let a probe that fails end the run: a study must not go on without its measurements."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", ProbeWarning)
        yield
