"""Batch norm without the noise of its batches: the statistics of a population at every forward in training."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from normscope.layers import AbstractBatchNorm, given_statistics, record_statistics
from normscope.modules.call import arguments
from normscope.modules.rng import torch_streams_kept


class PopulationStatistics:
    """Hooks on a model: before each forward in training, its batch norms take their statistics from a population.

    The gradient goes through the statistics, as it does through those of a batch. The running statistics follow those
    of the population with each norm's momentum.

    Args:
        population: Input to the model, as an example is given.
    """

    def __init__(self, population: Any) -> None:
        self.population = tree_map_only(Tensor, lambda t: t.detach(), population)
        self._given: Any = None
        self._inside = False

    def attach(self, model: nn.Module) -> None:
        """Set the hooks."""
        model.register_forward_pre_hook(self.before)
        model.register_forward_hook(self.after, always_call=True)

    def before(self, model: nn.Module, _: Any) -> None:
        """Run the population, and let the norms use its statistics."""
        if self._inside or not model.training:
            return
        self._inside = True
        try:
            with torch_streams_kept():
                found = record_statistics(model, lambda: self._call(model))
        finally:
            self._inside = False
        _track(model, found)
        self._given = given_statistics(model, found)
        self._given.__enter__()

    def after(self, *_: Any) -> None:
        """Let the norms be as they were."""
        if not self._inside and self._given is not None:
            given, self._given = self._given, None
            given.__exit__(None, None, None)

    def _call(self, model: nn.Module) -> None:
        args, kwargs = arguments(model, self.population)
        model(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PopulationStatistics":
        return PopulationStatistics(copy.copy(self.population))


@torch.no_grad()
def _track(model: nn.Module, found: dict[str, list[tuple[Tensor, Tensor]]]) -> None:
    for path, uses in found.items():
        norm: Any = model.get_submodule(path)
        if not isinstance(norm, AbstractBatchNorm) or norm.running_mean is None or norm.running_var is None:
            continue
        for mean, var in uses:
            count: Any = norm.num_batches_tracked
            count.add_(1)
            weight = 1 / float(count) if norm.momentum is None else norm.momentum
            norm.running_mean.lerp_(mean.detach().to(norm.running_mean), weight)
            norm.running_var.lerp_(var.detach().to(norm.running_var), weight)
