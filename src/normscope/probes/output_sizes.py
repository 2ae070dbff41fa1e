"""How large the outputs of layers are, and between which layers gradients can be compared by it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import Module
from torch.nn.modules.conv import _ConvNd

from normscope.probes.remarks import Readings

Pass = tuple[Tensor, int, int]
"""Norm of the gradient of a layer's output, its number of elements, and those at a position."""


@dataclass(frozen=True, slots=True)
class Comparable:
    """The layers between which gradients can be compared: those that share their number of positions with another.

    Attributes:
        groups: Index in the order of layers, and width, by layer, for each number of positions.
    """

    groups: Sequence[Mapping[str, tuple[int, float]]]

    @property
    def sites(self) -> list[str]:
        """All of these layers, from the input to the output."""
        depth = {site: index for group in self.groups for site, (index, _) in group.items()}
        return sorted(depth, key=depth.__getitem__)

    @property
    def reach(self) -> int:
        """How many steps from layer to layer lie between the first and the last of some group."""
        spans = [(min(at), max(at)) for group in self.groups if (at := [index for index, _ in group.values()])]
        return len({step for low, high in spans for step in range(low, high)})

    def growth(self, norms: Mapping[str, float]) -> float:
        """Return the factor by which the square summed over the width grows a layer toward the input.

        It is the least-squares slope that all groups share, each with a level of its own.
        """
        above = below = 0.0
        for group in self.groups:
            rows = [
                (index, 2 * math.log(norms[site]) + math.log(width))
                for site, (index, width) in group.items()
                if norms.get(site, 0.0) > 0
            ]
            centre = sum(index for index, _ in rows) / max(len(rows), 1)
            above += sum((index - centre) * log for index, log in rows)
            below += sum((index - centre) ** 2 for index, _ in rows)
        return math.exp(min(max(-above / below, -700.0), 700.0)) if below else math.nan


def comparable(readings: Readings) -> Comparable | None:
    """Return the layers that can be compared; None if all outputs have one size."""
    widths, positions = readings.first("output_width"), readings.first("output_positions")
    if not widths and not positions:
        return None
    groups: dict[float, dict[str, tuple[int, float]]] = {}
    for index, site in enumerate(readings.values.get("output_norm", {})):
        groups.setdefault(positions.get(site, 0.0), {})[site] = (index, widths.get(site, 1.0))
    return Comparable([group for group in groups.values() if len(group) > 1])


def width_of(module: Module, y: Tensor) -> int:
    """Return how many elements a layer's output has at a position."""
    if isinstance(module, _ConvNd):
        return y.shape[1 if y.ndim == len(module.kernel_size) + 2 else 0]
    return y.shape[-1] if y.ndim else 1


def sizes_of(squares: Mapping[str, Sequence[Pass]]) -> dict[str, dict[str, float]]:
    """Return widths and positions by layer, each only where layers differ in it."""
    called = {site: passes for site, passes in squares.items() if passes}
    widths = {site: float(passes[0][2]) for site, passes in called.items()}
    positions = {
        site: sum(count / width for _, count, width in passes) / len(passes) for site, passes in called.items()
    }
    fewest = min(positions.values(), default=1.0)  # the batch, where a head follows: then it is positions of a sample
    positions = {site: number / fewest for site, number in positions.items()}
    sizes = {"output_width": widths, "output_positions": positions}
    return {name: by_site for name, by_site in sizes.items() if len({*by_site.values()}) > 1}
