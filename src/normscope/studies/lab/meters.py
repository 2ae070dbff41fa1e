"""Cheap instruments that read the forward pass of every training step."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from normscope.records import Record


class AbstractMeter(ABC):
    """Listens to modules' outputs while ``active`` is set, so that passes made by probes are not counted.

    Args:
        sites: Names of the modules whose outputs are read.
    """

    active: bool = False

    def __init__(self, sites: Sequence[str]) -> None:
        self.sites = tuple(sites)
        self._handles: list[RemovableHandle] = []

    def attach(self, model: nn.Module) -> None:
        """Listen to a network by hooks."""
        self._handles = [
            model.get_submodule(site).register_forward_hook(lambda _m, _i, out, site=site: self.hear(site, out))
            for site in self.sites
        ]

    def hear(self, site: str, out: Tensor) -> None:
        """Look at a module's output ``(N, C, *)`` if it is to be listened to."""
        if self.active:
            self.look(site, out.detach())

    def wants(self, step: int) -> bool:
        """Say whether the forward pass of a step is to be listened to."""
        return True

    @abstractmethod
    def look(self, site: str, out: Tensor) -> None:
        """Take from a module's output what is read."""

    @abstractmethod
    def read(self, cell: str, step: int) -> Iterable[Record]:
        """Yield what the step's forward pass showed."""

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()


class ChannelShift(AbstractMeter):
    """How far the mean and the variance of each channel move from one step to the next.

    The size of the shift in the distribution of a layer's inputs that Santurkar et al. 2018 plot in Figures 1(c) and 8:
    the absolute change between consecutive training batches, averaged over the channels. Both also in units of the
    channel's standard deviation (``relative``), since activations without normalization may be smaller.

    Records, probe ``channel_shift``, from the second step on: ``mean_shift``, ``variance_shift``,
    ``relative_mean_shift``, ``relative_variance_shift``.

    Args:
        sites: Names of the modules whose outputs are read.
        every: Steps between two readings; each takes two consecutive steps.
    """

    def __init__(self, sites: Sequence[str], *, every: int = 10) -> None:
        super().__init__(sites)
        self._every = every
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}
        self._last: dict[str, tuple[Tensor, Tensor]] = {}

    def wants(self, step: int) -> bool:
        """Listen to the step before a reading and to the reading's own."""
        return self._every == 1 or step % self._every in (0, 1)

    def look(self, site: str, out: Tensor) -> None:
        """Take mean and variance of each channel."""
        variance, mean = torch.var_mean(out, [0, *range(2, out.dim())], correction=0)
        self._seen[site] = (mean, variance)

    def read(self, cell: str, step: int) -> Iterable[Record]:
        """Yield the shifts since the step before."""
        if self._every > 1 and step % self._every != 1:
            self._last, self._seen = self._seen, {}
            return
        for site, (mean, variance) in self._seen.items():
            if site in self._last:
                before, spread = self._last[site]
                moved, widened = (mean - before).abs(), (variance - spread).abs()
                scale = spread + 1e-12
                values = torch.stack(
                    [moved.mean(), widened.mean(), (moved / scale.sqrt()).mean(), (widened / scale).mean()]
                ).tolist()
                names = ("mean_shift", "variance_shift", "relative_mean_shift", "relative_variance_shift")
                for name, value in zip(names, values, strict=True):
                    yield Record(cell, step, "channel_shift", site, name, value)
        self._last, self._seen = self._seen, {}
