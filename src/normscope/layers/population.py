"""Statistics from outside: of the whole training set, say, and differentiated: batch norm without its noise.

Normalizing a batch by the statistics of all data, which depend on the weights as the batch does, has all of batch
norm's effect on the gradient but for the noise of small batches. The statistics of a layer depend on those of the
layers before it, so all data go through the network first; then a batch does, layer by layer with their statistics:

    with population_of(model, everything):
        loss = criterion(model(batch), labels)
    loss.backward()
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.nn import Module

from normscope._errors import UsageError
from normscope.layers._batch_norm import AbstractBatchNorm
from normscope.layers._running import Given, Recorder

Population = dict[str, list[tuple[Tensor, Tensor]]]


def record_statistics(model: Module, call: Callable[[], Any]) -> Population:
    """Run a model and return the statistics that its batch norms take, tracking nothing.

    Args:
        model: Its batch norms are of this package; they normalize by the batch while this runs, in any mode.
        call: Runs the model on the data whose statistics are wanted: ``lambda: model(everything)``.

    Returns:
        Under the path of each batch norm, for each of its uses in turn, the mean and the biased variance ``(C,)``;
        differentiable with respect to parameters and data, unless the call is under ``torch.no_grad()``.

    Raises:
        UsageError: The model has no batch norm of this package.
    """
    recorders = {path: Recorder() for path in _layers(model)}
    with _standing_in(model, recorders):
        call()
    return {path: recorder.statistics for path, recorder in recorders.items()}


@contextmanager
def given_statistics(model: Module, population: Population) -> Iterator[None]:
    """Let the batch norms of a model normalize by given statistics, tracking nothing.

    Args:
        model: Its batch norms are of this package.
        population: Mean and biased variance for each use of each layer, as ``record_statistics`` returns them. Layers
            that are not named, or without statistics, do as always.

    Raises:
        UsageError: A name is of no batch norm of the model.
    """
    unknown = sorted(set(population) - set(_layers(model)))
    if unknown:
        raise UsageError(f"no batch norm of this package at {unknown}: there is {sorted(_layers(model))}")
    with _standing_in(model, {path: Given(statistics) for path, statistics in population.items() if statistics}):
        yield


@contextmanager
def population_of(model: Module, everything: Any) -> Iterator[Population]:
    """Let the batch norms of a model normalize by the statistics of other data, differentiably.

    Args:
        model: Its batch norms are of this package.
        everything: What the model is called with for its statistics; a tuple is its arguments.

    Yields:
        The statistics.
    """
    args = everything if isinstance(everything, tuple) else (everything,)
    population = record_statistics(model, lambda: model(*args))
    with given_statistics(model, population):
        yield population


def _layers(model: Module) -> dict[str, AbstractBatchNorm]:
    found = {path: module for path, module in model.named_modules() if isinstance(module, AbstractBatchNorm)}
    if not found:
        raise UsageError("the model has no batch norm of this package: convert it first")
    return found


@contextmanager
def _standing_in(model: Module, stands: dict[str, Any]) -> Iterator[None]:
    layers = _layers(model)
    before = {path: layers[path]._population for path in stands}
    try:
        for path, stand in stands.items():
            layers[path]._population = stand
        yield
    finally:
        for path, stand in before.items():
            layers[path]._population = stand
