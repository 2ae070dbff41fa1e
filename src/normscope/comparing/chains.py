"""Chains of layers in a model of which theory knows how the gradient grows, and what theory says of each.

A chain is a stretch of a ``Sequential``: linear layers, or convolutions that keep the number of positions, with nothing
between them but ReLU, or batch norm and ReLU. What comes before and behind it may be anything.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from normscope.comparing.mean_field import Grid, Taps, inverse_variances, resized, through
from normscope.modules.batches import leading_tensor
from normscope.modules.hooks import Hook
from normscope.studies.lab.chain import theory

RELU, NORM = "ReLU", "batch norm and ReLU"
_PASSING = (nn.Identity, nn.Flatten)  # hand on what they are given
_FEW = 64  # inputs of a unit: by fewer, the outputs of a layer are so alike that those of the next are not wide
_SMALLEST_BATCH = 4  # of which theory knows the growth with batch norm


class Expected(NamedTuple):
    """What theory says of a layer.

    Attributes:
        site: Its qualified name.
        kind: What stands behind each layer of its chain: ``RELU`` or ``NORM``.
        chain: Number of its chain in the model.
        level: Logarithm of the squared gradient at its output, summed over the width, over that of the chain's last.
    """

    site: str
    kind: str
    chain: int
    level: float


@dataclass
class _Layer:
    """A layer that bears weight, and what stands between it and the next, as it was before the step.

    Attributes:
        site: Its qualified name.
        module: The layer.
        gain: Mean square of its weights, times the number of inputs of a unit.
        inputs: That number.
        kind: What stands behind it up to the next layer: ``RELU``, ``NORM``, or neither.
        has_norm: Whether batch norm stands right behind it.
        grid: Positions of its input; None until they are seen.
        share: Of the mean square of its input, what is due to the means over samples.
    """

    site: str
    module: nn.Linear | nn.modules.conv._ConvNd
    gain: float
    inputs: int
    kind: str
    has_norm: bool
    grid: Grid | None = None
    share: float = 0.0

    @property
    def taps(self) -> Taps | None:
        """The layer's taps; None where it does not keep the number of positions, or mixes only some channels."""
        layer = self.module
        if isinstance(layer, nn.Linear):
            return Taps()
        kept = layer.groups == 1 and set(layer.stride) == {1} and layer.padding_mode == "zeros"
        if not kept or any(size % 2 == 0 for size in layer.kernel_size):
            return None
        reach = tuple(d * (k - 1) // 2 for k, d in zip(layer.kernel_size, layer.dilation, strict=True))
        if layer.padding not in ("same", reach):
            return None
        along = (1,) * (2 - len(reach))
        return Taps((*along, *layer.kernel_size), (*along, *layer.dilation))  # type: ignore[arg-type]

    def look(self, _: nn.Module, args: Any) -> None:
        """Take the number of positions of the layer's first input, and how much of it is alike in all samples."""
        given = leading_tensor(args)
        if self.grid is not None or given is None or torch.compiler.is_compiling():
            return
        if isinstance(self.module, nn.Linear):
            self.grid = Grid() if given.ndim == 2 else None
        else:
            sides = tuple(given.shape[-len(self.module.kernel_size) :])
            self.grid = Grid(*(1,) * (2 - len(sides)), *sides)
            given = given.detach().float()
            square, count = float(given.square().mean()), len(given)
            of_means = (count * float(given.mean(0).square().mean()) - square) / max(count - 1, 1)
            self.share = min(max(of_means / square, 0.0), 1.0) if square > 0 else 0.0


class Chains:
    """The chains of a model, with the weights that it has now. As a context it looks on at a forward pass.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._rows = [_layers(row) for row in _rows(model)]
        self._handles: list[Any] = []

    def __enter__(self) -> "Chains":
        layers = [layer for row in self._rows if any(each.kind for each in row) for layer in row]
        self._handles = [layer.module.register_forward_pre_hook(Hook(layer.look)) for layer in layers]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def expected(self, batch: int | None) -> Iterator[Expected]:
        """Yield what theory says of each layer of a chain, after a forward pass.

        Args:
            batch: Samples; None if not known.
        """
        stretches = [(row, stretch) for row in self._rows for stretch in _stretches(row)]
        for number, (row, (first, last)) in enumerate(stretches):
            kind, level = row[first].kind, 0.0
            steps = (_norm_steps if kind == NORM else _relu_steps)(row, first, last, batch)
            if steps:
                yield Expected(row[last].site, kind, number, level)
            for layer, step in zip(reversed(row[last - len(steps) : last]), reversed(steps), strict=True):
                level += step
                yield Expected(layer.site, kind, number, level)


def _relu_steps(row: Sequence[_Layer], first: int, last: int, _: int | None) -> list[float]:
    """Return the logarithm of the growth from each layer's next to the layer, in a chain without norms."""
    grid, passed = row[last].grid or Grid(), _passed(row)
    return [math.log(row[i + 1].gain / 2) + grid.share() * passed[i] for i in range(first, last)]


def _norm_steps(row: Sequence[_Layer], first: int, last: int, batch: int | None) -> list[float]:
    """Return the same in a chain with batch norm, from the second layer on: of the first's input theory knows nothing.

    Where the first has few inputs, as at images of three channels, it is from the third layer on.
    """
    grid, passed = row[last].grid or Grid(), _passed(row)
    taps = tuple(row[i].taps or Taps() for i in range(first, last + 1))
    inverse = inverse_variances(taps, grid.computed(), round(row[first].share, 2))
    even = theory("relu", batch if grid == Grid() and batch and batch >= _SMALLEST_BATCH else None)
    found = []
    for i in range(first + (2 if row[first].inputs < _FEW else 1), last):
        padding = passed[i] + math.log(0.5 * inverse[i - first] / theory("relu"))
        found.append(math.log(even * row[i + 1].gain / row[i].gain) + grid.share() * padding)
    return found


def _passed(row: Sequence[_Layer]) -> list[float]:
    """Return for each layer the logarithm of the share of the square that the next one's padding does not take."""
    found, square, following = [0.0] * len(row), np.ones(Grid()), None
    for index in reversed(range(len(row))):
        grid = (_output(row, index) or Grid()).computed()
        taps = following.taps if following is not None else None
        if taps is None or following is None or following.grid is None:
            square = np.ones(grid)
        else:
            handed = through(square, taps)
            found[index] = math.log(float(handed.mean() / square.mean()))
            square = resized(handed, grid)
        following = row[index]
    return found


def _output(row: Sequence[_Layer], index: int) -> Grid | None:
    """Return the positions of a layer's output, where they are known."""
    if row[index].taps is not None:
        return row[index].grid
    return row[index + 1].grid if row[index].kind and index + 1 < len(row) else None


def _stretches(row: Sequence[_Layer]) -> list[tuple[int, int]]:
    """Return the first and the last layer of each chain in a row of layers, those that are long enough to be one."""
    found, first = [], 0
    while first < len(row):
        last = first
        while last + 1 < len(row) and _is_link(row[first], row[last], row[last + 1]):
            last += 1
        if last - first >= (2 if row[first].kind == NORM else 1):
            found.append((first, last))
        # Of a chain with norms nothing is told of the first layer, so that it may be the last of a chain without.
        first = last if last > first and row[last].kind == NORM != row[first].kind else last + 1
    return found


def _is_link(first: _Layer, before: _Layer, layer: _Layer) -> bool:
    """Say whether a layer goes on with the chain that another has begun."""
    kind = first.kind
    kept = layer.taps is not None and layer.grid is not None and before.kind == kind != ""
    alike = isinstance(layer.module, nn.Linear) == isinstance(before.module, nn.Linear)  # a flattened map is no chain
    same = alike and (before is first or before.grid == layer.grid)
    return kept and same and min(before.gain, layer.gain) > 0 and (kind == RELU or layer.has_norm)


def _layers(row: Sequence[tuple[str, nn.Module]]) -> list[_Layer]:
    """Return the layers that bear weight in a sequence of modules."""
    doing = [(site, module) for site, module in row if not isinstance(module, _PASSING)]
    at = [i for i, (_, module) in enumerate(doing) if type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d)]
    found = []
    for index, following in itertools.pairwise([*at, len(doing)]):
        site, layer = doing[index]
        behind = [module for _, module in doing[index + 1 : following]]
        inputs = layer.weight[0].numel()  # type: ignore[index]
        gain = float(layer.weight.detach().float().square().mean()) * inputs  # type: ignore[operator]
        has_norm = bool(behind) and _is_plain_norm(behind[0])
        kinds = {1: RELU, 2: NORM if has_norm else ""}
        kind = kinds.get(len(behind), "") if behind and type(behind[-1]) is nn.ReLU else ""
        found.append(_Layer(site, layer, gain, inputs, kind, has_norm))  # type: ignore[arg-type]
    return found


def _rows(model: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """Yield the modules of every sequence that lies in no other, in order; but not where one bears weight twice."""
    inside: set[nn.Module] = set()
    for site, module in model.named_modules():
        if type(module) is nn.Sequential and module not in inside:
            inside |= set(module.modules())
            row = list(_unfolded(site, module))
            bearing = [part for _, part in row if any(True for _ in part.parameters())]
            if len(set(bearing)) == len(bearing):
                yield row


def _unfolded(site: str, sequence: nn.Sequential) -> Iterator[tuple[str, nn.Module]]:
    for name, module in sequence._modules.items():
        path = f"{site}.{name}".lstrip(".")
        if type(module) is nn.Sequential:
            yield from _unfolded(path, module)
        elif module is not None:
            yield path, module


def _is_plain_norm(module: nn.Module) -> bool:
    """Say whether a module is batch norm by the batch whose gains are all alike and whose shifts are nought."""
    if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d) or not module.training:
        return False
    gain, shift = (getattr(module, name) for name in ("weight", "bias"))
    return (gain is None or bool((gain == gain[0]).all())) and (shift is None or not bool(shift.any()))
