"""How far the statistics of each batch lie from the running statistics of a batch norm."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from normscope.records import Record
from normscope.studies.lab.meters import AbstractMeter

PROBE = "batch_distance"


class BatchDistance(AbstractMeter):
    """Compares what a batch norm is given with its running statistics, before they take the batch in.

    Records, probe ``batch_distance``, one site a batch norm: ``mean`` and ``variance``, the Euclidean distance of the
    batch's statistics from the running statistics over the number of channels (Shen et al. 2020, section 3);
    ``relative_mean``, the root mean square over channels of the distance in running standard deviations;
    ``relative_variance``, that of the logarithm of the ratio of the variances.

    Args:
        sites: Names of the batch norms.
        every: Steps between two readings.
    """

    def __init__(self, sites: Sequence[str], *, every: int = 2) -> None:
        super().__init__(sites)
        self._every = every
        self._seen: list[tuple[str, Tensor]] = []

    def attach(self, model: nn.Module) -> None:
        """Listen to what batch norms are given."""

        def listen(site: str) -> Any:
            def hear(module: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
                if self.active:
                    self._seen.append((site, distances(module, inputs[0].detach())))

            return hear

        self._handles = [model.get_submodule(site).register_forward_pre_hook(listen(site)) for site in self.sites]

    def wants(self, step: int) -> bool:
        """Listen to every few steps."""
        return step % self._every == 0

    def look(self, site: str, out: Tensor) -> None:
        """Take nothing: outputs are not listened to."""

    def read(self, cell: str, step: int) -> Iterable[Record]:
        """Yield what the step's forward pass showed."""
        for site, values in self._seen:
            for name, value in zip(NAMES, values.tolist(), strict=True):
                yield Record(cell, step, PROBE, site, name, value)
        self._seen = []


NAMES = ("mean", "variance", "relative_mean", "relative_variance")


def distances(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Return the four distances of ``BatchDistance`` for an input (N, C, *), in the order of ``NAMES``."""
    variance, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    off, spread = mean - norm.running_mean, norm.running_var
    return torch.stack(
        [
            off.norm() / len(off),
            (variance - spread).norm() / len(off),
            (off.square() / spread).mean().sqrt(),
            ((variance + norm.eps) / (spread + norm.eps)).log().square().mean().sqrt(),
        ]
    )
