"""How the outputs of layers are distributed."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from normscope._errors import UsageError
from normscope.probes._probe import AbstractProbe, Step
from normscope.probes._sites import bears_weight, chosen, is_norm, named_sites
from normscope.records import Record

_LEVELS = (0.15, 0.50, 0.85)


class ActivationDistribution(AbstractProbe):
    r"""Mean, standard deviation and percentiles of layer outputs.

    ## Measures
    For each site, over all elements of its output in the user's own forward pass (batch, channels, positions):
    ``mean``, ``std`` (of the population, divisor :math:`n`), and the percentiles ``p15``, ``p50``, ``p85`` by linear
    interpolation. The output of a norm or of a linear or convolutional layer is a pre-activation: what the following
    non-linearity sees. A site that is called several times is pooled over its calls.

    Percentiles of more than ``sample`` elements are those of a subsample: every k-th element in memory order, with k
    the smallest step that leaves at most ``sample`` elements and has no factor in common with their number, so that all
    channels and positions are met evenly. No random number is drawn. The standard error of a percentile from 8192
    independent normal values is about 0.015 standard deviations. ``mean`` and ``std`` always use every element.

    ## Cost
    One pass over each site's output for the moments, and a partial sort of at most ``sample`` elements.

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

    def __init__(self, sites: Sequence[str] | None = None, *, sample: int = 8192, every: int | None = None) -> None:
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

    def _of(self, output: Tensor) -> tuple[int, Tensor, Tensor, Tensor]:
        flat = _in_memory_order(output)
        flat = flat if flat.dtype == torch.float64 else flat.float()
        if flat.numel() == 0:
            nothing = torch.full((), math.nan)
            return 0, nothing, nothing, flat
        mean = flat.mean()
        centred = flat - mean  # two passes, for their accuracy; a tenth of the time of torch.var_mean on a CPU
        variance = torch.dot(centred, centred) / flat.numel()
        stride = 1 if flat.numel() <= self.sample else _stride(flat.numel(), self.sample)
        return flat.numel(), mean, variance, flat[::stride].clone()

    def read(self, step: Step) -> Iterator[Record]:
        """Yield five values a site, in the order of first use."""
        for site, calls in step.notes(self).items():
            count, mean, square = 0, 0.0, 0.0
            for size, its_mean, its_variance, _ in calls:
                if size:
                    # Chan et al.: merge (count, mean, sum of squared deviations).
                    shift, total = float(its_mean) - mean, count + size
                    square += float(its_variance) * size + shift * shift * count * size / total
                    mean += shift * size / total
                    count = total
            if not count:
                continue
            yield self.record(step, site, "mean", mean)
            yield self.record(step, site, "std", math.sqrt(square / count))
            values = torch.cat([sampled for *_, sampled in calls]).cpu().numpy()
            for level, value in zip(_LEVELS, _percentiles(values), strict=True):
                yield self.record(step, site, f"p{round(100 * level)}", value)


def _default_sites(model: Module) -> dict[str, Module]:
    return {site: module for site, module in named_sites(model) if is_norm(module) or bears_weight(module)}


def _in_memory_order(output: Tensor) -> Tensor:
    """Flatten without a copy where the elements lie dense; their order does not matter to a distribution."""
    by_stride = sorted(range(output.ndim), key=output.stride, reverse=True)
    return output.permute(by_stride).reshape(-1)


def _percentiles(values: np.ndarray) -> list[float]:
    """Interpolate linearly between order statistics, as ``numpy.percentile`` does; NaN if any value is."""
    if np.isnan(values).any():
        return [math.nan] * len(_LEVELS)
    places = [level * (values.size - 1) for level in _LEVELS]
    below = [math.floor(place) for place in places]
    above = [min(place + 1, values.size - 1) for place in below]
    ordered = np.partition(values, sorted({*below, *above})).astype(np.float64)
    return [
        # Equal neighbours first: between two infinities there is nothing to interpolate.
        float(low if low == high else low + (high - low) * (place - math.floor(place)))
        for place, low, high in zip(places, ordered[below], ordered[above], strict=True)
    ]


def _stride(count: int, sample: int) -> int:
    stride = math.ceil(count / sample)
    while math.gcd(stride, count) != 1:
        stride += 1
    return stride
