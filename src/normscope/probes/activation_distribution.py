"""How the outputs of layers are distributed."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from normscope._errors import UsageError
from normscope.probes._host import to_floats
from normscope.probes._probe import AbstractProbe, Step
from normscope.probes._sites import bears_weight, chosen, is_norm, sites_where
from normscope.records import Record

_LEVELS = (0.15, 0.50, 0.85)
_NAMES = tuple(f"p{round(100 * level)}" for level in _LEVELS)


@dataclass(frozen=True, slots=True)
class _Call:
    """One output of a site: number of elements, mean, sum of squared deviations, and the subsample."""

    count: int
    mean: Tensor | float
    square: Tensor | float
    sample: Tensor


class ActivationDistribution(AbstractProbe):
    r"""Mean, standard deviation and percentiles of layer outputs.

    ## Measures
    For each site, over all elements of its output in the user's own forward pass (batch, channels, positions):
    ``mean``, ``std`` (of the population, divisor :math:`n`), and the percentiles ``p15``, ``p50``, ``p85`` by linear
    interpolation. The output of a norm or of a linear or convolutional layer is a pre-activation: what the following
    non-linearity sees. A site that is called several times is pooled over its calls.

    Percentiles of more than ``sample`` elements are those of a subsample: every k-th element in memory order, with k
    the smallest step that leaves at most ``sample`` elements and has no factor in common with their number, so that all
    channels and positions are met evenly. No random number is drawn. The standard error of a percentile from 4096
    independent normal values is about 0.02 standard deviations. ``mean`` and ``std`` always use every element.

    ## Cost
    Two readings of each site's output for the moments (a third where the mean outweighs the deviation), a sort of at
    most ``sample`` elements, one transfer to the host a step.

    ## Reads wrongly when
    The distribution differs strongly between channels: these are statistics of the layer, not of a unit. Forward
    passes without gradient (evaluation inside the step) are left out; passes repeated by activation checkpointing
    count twice, which changes nothing unless their dropout differs.

    Args:
        sites: Qualified names of modules; every norm and every layer that bears weight if None.
        sample: Number of elements beyond which percentiles are taken from a subsample.
        every: Read at every so-many-th step; None takes the scope's schedule.
    """

    CODE = "activation_distribution"
    SOURCES = (
        "Ioffe and Szegedy 2015, section 4.1, figure 1 (arXiv:1502.03167)",
        "Chan, Golub and LeVeque 1983, Algorithms for Computing the Sample Variance (merging of moments)",
    )

    def __init__(self, sites: Sequence[str] | None = None, *, sample: int = 4096, every: int | None = None) -> None:
        super().__init__(every=every)
        if sample < 2:
            raise UsageError(f"{self.CODE}: sample={sample} must be 2 or more")
        self.sites = None if sites is None else tuple(sites)
        self.sample = sample

    def watch(self, step: Step) -> None:
        """Reduce each site's output as it is made."""
        notes = step.notes(self)
        sites = _default_sites(step.model) if self.sites is None else chosen(step.model, self.sites)
        for site, module in sites.items():
            step.on_output(self, module, partial(self._take, notes, site))

    def _take(self, notes: dict[str, Any], site: str, output: Tensor) -> None:
        notes.setdefault(site, []).append(self._of(output))

    def _of(self, output: Tensor) -> _Call:
        flat = _in_memory_order(output)
        flat = flat if flat.dtype == torch.float64 else flat.float()
        count = flat.numel()
        if count == 0:
            return _Call(0, math.nan, math.nan, flat)
        stride = 1 if count <= self.sample else _stride(count, self.sample)
        return _Call(count, *_moments(flat), flat[::stride].clone())

    def read(self, step: Step) -> Iterator[Record]:
        """Yield five values a site, in the order of first use."""
        sites: dict[str, list[_Call]] = step.notes(self)
        calls = [call for made in sites.values() for call in made]
        moments = iter(to_floats([value for call in calls for value in (call.mean, call.square)]))
        samples = iter(_to_host([call.sample for call in calls]))
        for site, made in sites.items():
            count, mean, square, values = 0, 0.0, 0.0, []
            for call in made:
                its_mean, its_square = next(moments), next(moments)
                values.append(next(samples))
                if call.count:
                    # Chan et al.: merge (count, mean, sum of squared deviations).
                    shift, total = its_mean - mean, count + call.count
                    square += its_square + shift * shift * count * call.count / total
                    mean += shift * call.count / total
                    count = total
            if not count:
                continue
            yield self.record(step, site, "mean", mean)
            yield self.record(step, site, "std", math.sqrt(square / count))
            for name, value in zip(_NAMES, _percentiles(_joined(values)), strict=True):
                yield self.record(step, site, name, value)


def _moments(flat: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """Return mean and sum of squared deviations, by calls that read memory as seldom as accuracy allows."""
    if flat.device.type != "cpu":
        variance, centre = torch.var_mean(flat, 0, correction=0)
        return centre, variance * flat.numel()
    count, mean, total = flat.numel(), float(flat.mean()), float(torch.dot(flat, flat))
    square = total - count * mean * mean
    # Half of the square is deviation: the subtraction has cost one bit. If not, once more, around the mean. (A
    # comparison with NaN is false; torch.var_mean takes thirty times as long on a CPU.)
    if square > 0.5 * total:
        return mean, square
    centred = flat - mean
    return mean, float(torch.dot(centred, centred))


def _to_host(samples: list[Tensor]) -> list[np.ndarray]:
    """Bring all samples over in one transfer a kind."""
    if all(sample.device.type == "cpu" for sample in samples):
        return [sample.numpy() for sample in samples]
    found: list[np.ndarray] = [np.empty(0)] * len(samples)
    for kind in {(sample.device, sample.dtype) for sample in samples}:
        here = [index for index, sample in enumerate(samples) if (sample.device, sample.dtype) == kind]
        joined = torch.cat([samples[index] for index in here]).cpu().numpy()
        ends = np.cumsum([samples[index].numel() for index in here])[:-1]
        for index, part in zip(here, np.split(joined, ends), strict=True):
            found[index] = part
    return found


def _joined(values: list[np.ndarray]) -> np.ndarray:
    return values[0] if len(values) == 1 else np.concatenate(values)


def _default_sites(model: Module) -> dict[str, Module]:
    return sites_where(model, _is_default)


def _is_default(module: Module) -> bool:
    return is_norm(module) or bears_weight(module)


def _in_memory_order(output: Tensor) -> Tensor:
    """Flatten without a copy where the elements lie dense; their order does not matter to a distribution."""
    if output.is_contiguous():
        return output.view(-1)
    by_stride = sorted(range(output.ndim), key=output.stride, reverse=True)
    return output.permute(by_stride).reshape(-1)


def _percentiles(values: np.ndarray) -> list[float]:
    """Sort in place, and interpolate between order statistics as ``numpy.percentile`` does; NaN if any value is."""
    values.sort()  # with vector instructions several times faster than a selection; NaN comes last
    ordered = values
    if math.isnan(ordered[-1]):
        return [math.nan] * len(_LEVELS)
    found = []
    for level in _LEVELS:
        place = level * (values.size - 1)
        below = math.floor(place)
        low, high = float(ordered[below]), float(ordered[min(below + 1, values.size - 1)])
        # Equal neighbours first: between two infinities there is nothing to interpolate.
        found.append(low if low == high else low + (high - low) * (place - below))
    return found


@cache
def _stride(count: int, sample: int) -> int:
    stride = math.ceil(count / sample)
    while math.gcd(stride, count) != 1:
        stride += 1
    return stride
