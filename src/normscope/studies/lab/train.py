"""The one training loop: deterministic per seed, watched by probes, honest about divergence."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

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
    records: list[Record] = []

    def note(step: int, name: str, value: float) -> None:
        records.append(Record(cell, step, "training", "", name, value))

    scope = None
    if probes:
        scope = Recorder(
            model, lambda net, at: criterion(net(at[0]), at[1]), updates, probes=list(probes), every=every, cell=cell
        )
    diverged = False
    labelled = not data.y_train.is_floating_point()
    model.train()
    for meter in meters:
        meter.attach(model)
    try:
        for step in range(steps):
            if evaluate_every and step and step % evaluate_every == 0:
                records += evaluate(model, data, cell, step, ("test",), criterion)
            batch = (data.x_train[order[step]], data.y_train[order[step]])
            if scope is not None and probe_until is not None and step >= probe_until:
                records.extend(scope.drain())
                scope.close()
                scope = None
            try:
                with _strict(), scope.step(batch) if scope is not None else nullcontext():
                    updates.zero_grad(set_to_none=True)
                    for meter in meters:
                        meter.active = meter.wants(step)
                    logits = model(batch[0])
                    for meter in meters:
                        meter.active = False
                    loss = criterion(logits, batch[1])
                    value = loss.item()
                    note(step, "loss", value)
                    if labelled:
                        note(step, "accuracy", accuracy(logits, batch[1]))
                    if not math.isfinite(value):
                        raise _DivergedError
                    loss.backward()
                    for meter in meters:
                        records.extend(meter.read(cell, step))
                    if watch is not None:
                        records.extend(watch(step, model))
                    updates.step()
            except _DivergedError:
                if step == 0:
                    raise NonFiniteError(
                        "the loss is not finite before the first update: look for NaN or huge values in the data"
                    ) from None
                diverged = True
                break
            if scope is not None:
                records.extend(scope.drain())
    finally:
        if scope is not None:
            scope.close()
        for meter in meters:
            meter.close()
    if diverged:
        note(step, "diverged", 1.0)
    else:
        records += evaluate(model, data, cell, steps, criterion=criterion)
        note(steps, "diverged", 0.0)
    return records


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
