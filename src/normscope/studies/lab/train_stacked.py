"""The training loop for several seeds at once: what ``train`` records of each, to rounding."""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from normscope.records import Cell, Record
from normscope.studies.lab.arms import schedule
from normscope.studies.lab.data import Split
from normscope.studies.lab.meters import AbstractMeter
from normscope.studies.lab.stack import Stack
from normscope.studies.lab.train import MakeOptimizer, Watcher, batch_indices, evaluate, not_finite_at_start


def train_stacked(
    models: Sequence[nn.Module],
    splits: Sequence[Split],
    *,
    cells: Sequence[str],
    seeds: Sequence[int],
    steps: int,
    lr: float,
    batch_size: int,
    optimizer: MakeOptimizer | None = None,
    meters: Sequence[Sequence[AbstractMeter]] = (),
    watch: Sequence[Watcher] = (),
    watch_every: int = 1,
) -> list[list[Record]]:
    """Train K networks of one architecture by one loop, and return of each what ``lab.train.train`` returns.

    A seed has its own initial weights, data and order of batches; nothing of one seed enters the arithmetic of another.
    Records are those of ``train`` to rounding, not bit for bit: products of matrices are summed in another order. In
    which company a seed is trained may change its last bits too, so a study's company is fixed (``SEEDS_AT_ONCE``).

    A seed whose loss is no longer finite ends there, with the weights that had that loss, as in ``train``; the others
    go on.

    Args:
        models: Networks of logits, alike in all but values, without hooks; trained in place.
        splits: What each is trained and evaluated on, of the same sizes; targets are labels.
        cells: Names of the runs in their records.
        seeds: Seeds of the replicates.
        steps: Number of updates.
        lr: Learning rate of plain SGD.
        batch_size: Examples of a step.
        optimizer: Makes another optimizer of the stacked model, whose parameters are those of all seeds. It must treat
            every number by itself, as SGD with momentum and Adam do.
        meters: Of each seed, as many instruments that read steps' own forward passes.
        watch: Of each seed, what ``train`` calls ``watch``: called before updates with (step, its own model), gradients
            in place; its records are kept.
        watch_every: Steps between two calls of it.

    Returns:
        The records of each model.

    Raises:
        NonFiniteError: The loss of a seed is not finite before the first update.
    """
    stack = Stack(models)
    learnt = [parameter for parameter in stack.parameters() if parameter.requires_grad]
    updates = torch.optim.SGD(learnt, lr=lr) if optimizer is None else optimizer(stack)
    orders = [
        batch_indices(len(split.y_train), batch_size, steps, seed).to(split.y_train.device)
        for split, seed in zip(splits, seeds, strict=True)
    ]
    stack.attach(meters)
    records: list[list[Record]] = [[] for _ in models]
    alive = list(range(len(models)))
    for step in range(steps):
        x, y = _batch(splits, orders, step)
        updates.zero_grad(set_to_none=True)
        for meter in chain(*meters):
            meter.active = meter.wants(step)
        logits = stack(x)
        losses = cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(0)
        right = (logits.argmax(2) == y).double().mean(0).tolist()
        values = losses.tolist()
        for index in tuple(alive):
            records[index] += [
                Record(cells[index], step, "training", "", "loss", values[index]),
                Record(cells[index], step, "training", "", "accuracy", right[index]),
            ]
            if not math.isfinite(values[index]):
                if step == 0:
                    raise not_finite_at_start()
                # Its numbers stay in the stack, where they touch nobody else's.
                alive.remove(index)
                stack.release(index)
                records[index].append(Record(cells[index], step, "training", "", "diverged", 1.0))
        if not alive:
            break
        losses.sum().backward()  # every loss has the derivative that it has alone
        for index in alive if meters else ():
            for meter in meters[index]:
                records[index] += meter.read(cells[index], step)
        if watch and step % watch_every == 0:
            for index in alive:
                stack.release(index)
                records[index] += watch[index](step, models[index])
        updates.step()
    for index in alive:
        stack.release(index)
        evaluated = evaluate(models[index], splits[index], cells[index], steps)
        records[index] += [*evaluated, Record(cells[index], steps, "training", "", "diverged", 0.0)]
    return records


def fit_stacked(
    models: Sequence[nn.Module], splits: Sequence[Split], cells: Sequence[Cell], **changes: Any
) -> list[list[Record]]:
    """Train networks of cells that differ in their seed only, by the cells' settings, as ``lab.arms.fit`` does one.

    Args:
        models: Trained in place.
        splits: The data of each.
        cells: What to train by.
        changes: Arguments of ``train_stacked`` in place of those.

    Returns:
        The records of each cell.
    """
    names, seeds = [cell.id for cell in cells], [cell.seed for cell in cells]
    options: dict[str, Any] = {"cells": names, "seeds": seeds, **schedule(cells[0])}
    return train_stacked(models, splits, **options | changes)


def stackable(cell: Cell) -> bool:
    """Say whether a cell's network is dense: of convolutions, which work as long as they are called, none is saved."""
    return bool(cell.settings["network"]["name"] == "mlp")


def _batch(splits: Sequence[Split], orders: Sequence[Tensor], step: int) -> tuple[Tensor, Tensor]:
    """Return the step's examples of all seeds, inputs (N, K, ...) and labels (N, K)."""
    chosen = [order[step] for order in orders]
    x = torch.stack([split.x_train[rows] for split, rows in zip(splits, chosen, strict=True)], 1)
    y = torch.stack([split.y_train[rows] for split, rows in zip(splits, chosen, strict=True)], 1)
    return x, y
