"""How the outputs of layers are distributed."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from normscope._errors import UsageError
from normscope.modules.channels import channels, coprime_stride, in_memory_order, to_host
from normscope.modules.sites import chosen, pre_activations
from normscope.probes._probe import AbstractProbe
from normscope.probes._remarks import Readings, Remark, Urgency, amount, called, counted, decades, sentence, times
from normscope.probes._step import Step
from normscope.records import Record

_LEVELS = (0.15, 0.50, 0.85)
_NAMES = ("p15", "p50", "p85")
_ASIDE = 3.0  # standard deviations between the mean and zero: a unit hardly changes sign, its non-linearity is idle
_GROWN = 10.0  # times the first width: initialization no longer says anything about it
_UNEVEN = 100.0  # widest over narrowest layer; a well-scaled network stays within ten


class ActivationDistribution(AbstractProbe):
    r"""Mean, standard deviation and percentiles of layer outputs.

    ## Measures
    For each site, over all elements of its output in the user's own forward pass (batch, channels, positions):
    ``mean``, ``std`` (of the population, divisor :math:`n`), and the percentiles ``p15``, ``p50``, ``p85`` by linear
    interpolation. The output of a norm or of a linear or convolutional layer is a pre-activation: the input of
    the following non-linearity. A site that is called several times is pooled over its calls.

    For more than ``sample`` elements, percentiles are taken of a subsample: every k-th element in memory order, with k
    the smallest step that leaves at most ``sample`` elements and has no factor in common with their number, so that all
    channels and positions are met evenly. No random number is drawn. The standard error of a percentile from 8192
    independent normal values is about 0.015 standard deviations. ``mean`` and ``std`` always use every element.

    ## Cost
    Two reads of each site's output, shared with other probes, and a sort of at most ``sample`` elements.

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
    SHOWS = "std"
    QUESTION = "statistics"
    BY_DEFAULT = True
    NOTHING = "no layer that bears weight, and no norm, ran in this model"
    STREAMING = True
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
        sites = step.modules(pre_activations) if self.sites is None else chosen(step.model, self.sites)
        for site, module in sites.items():
            step.on_output(self, module, partial(self._take, step, notes, site))

    def _take(self, step: Step, notes: dict[str, Any], site: str, output: Tensor) -> None:
        if not output.numel():
            return
        flat = in_memory_order(output)
        stride = 1 if flat.numel() <= self.sample else coprime_stride(flat.numel(), self.sample)
        moments = step.memo(output if output.ndim > 1 else output.reshape(1, -1), "channels", channels)
        # Only moments and the subsample are kept, not the output itself.
        notes.setdefault(site, []).append((moments.count, moments.mean, moments.variance, flat[::stride].clone()))

    def read(self, step: Step) -> Iterator[Record]:
        """Yield five values a site, in the order of first use."""
        notes: dict[str, list[tuple[int, Tensor, Tensor, Tensor]]] = step.notes(self)
        every = [call for calls in notes.values() for call in calls]
        if not every:
            return
        host = to_host([part for _, *parts in every for part in parts])
        samples = host[2::3]
        # Channels of all sites and calls lie side by side: the number of operations does not grow with the layers.
        widths = [mean.size for mean in host[::3]]
        counts = np.repeat([float(count) for count, *_ in every], widths)
        means, variances = np.concatenate(host[::3]), np.concatenate(host[1::3])
        sizes = np.cumsum([0, *(len(calls) for calls in notes.values())])
        starts = np.cumsum([0, *widths])[sizes]
        total, sums = np.add.reduceat([counts, counts * means], starts[:-1], axis=1)
        centre = sums / total
        # The law of total variance: within channels and calls, and between them.
        spread = variances + (means - np.repeat(centre, np.diff(starts))) ** 2
        deviation = np.sqrt(np.add.reduceat(counts * spread, starts[:-1]) / total)
        for index, (site, mean, std) in enumerate(zip(notes, centre.tolist(), deviation.tolist(), strict=True)):
            yield self.record(step, site, "mean", mean)
            yield self.record(step, site, "std", std)
            sampled = samples[sizes[index] : sizes[index + 1]]
            for name, value in zip(_NAMES, _percentiles(np.concatenate(sampled)), strict=True):
                yield self.record(step, site, name, value)

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of outputs that are not finite, lie to one side, have grown, or differ much in width."""
        for site, step in readings.not_finite("mean").items():
            says = f"The outputs of {called(site)} are not finite, first at step {step:,}."
            yield Remark(says, Urgency.BROKEN, 0.9, (site,), "mean")
            break
        late, means = readings.late("std"), readings.late("mean")
        aside = {site: abs(means[site]) / std for site, std in late.items() if std > 0 and site in means}
        far = sorted((site for site, ratio in aside.items() if ratio > _ASIDE), key=lambda site: -aside[site])
        if far:
            says = (
                f"The outputs of {called(far[0])} lie {amount(aside[far[0]])} standard deviations to one side of zero"
                + (f", beyond {_ASIDE:g} also in {counted(len(far) - 1, 'other layer')}" if len(far) > 1 else "")
            )
            yield Remark(sentence(says), Urgency.NOTABLE, decades(aside[far[0]], _ASIDE), tuple(far), "mean")
        first = readings.first("std")
        grown = {site: late[site] / first[site] for site in late if first.get(site, 0.0) > 0}
        most = max(grown, key=lambda site: grown[site], default=None)
        if most is not None and grown[most] > _GROWN:
            says = (
                f"The outputs of {called(most)} spread {times(grown[most])} as wide as at step {readings.first_step:,}."
            )
            yield Remark(says, Urgency.COSTLY, decades(grown[most], _GROWN), (most,), "std")
        positive = {site: std for site, std in late.items() if std > 0}
        if len(positive) > 1:
            wide, narrow = max(positive, key=positive.__getitem__), min(positive, key=positive.__getitem__)
            ratio = positive[wide] / positive[narrow]
            if ratio > _UNEVEN and not (wide == most and grown[wide] > _GROWN):  # else it is said already
                says = f"The outputs of {called(wide)} spread {times(ratio)} as wide as those of {called(narrow)}."
                yield Remark(says, Urgency.NOTABLE, decades(ratio, _UNEVEN), (wide, narrow), "std")


def _percentiles(values: np.ndarray) -> list[float]:
    """Interpolate linearly between order statistics, as ``numpy.percentile`` does; NaN if any value is."""
    if math.isnan(values.sum()) and np.isnan(values).any():
        return [math.nan] * len(_LEVELS)
    places = [level * (values.size - 1) for level in _LEVELS]
    below = [math.floor(place) for place in places]
    above = [min(place + 1, values.size - 1) for place in below]
    ordered = np.sort(values)  # faster than the partition around six places
    return [
        # Equal neighbours first: between two infinities there is nothing to interpolate.
        low if low == high else low + (high - low) * (place - math.floor(place))
        for place, low, high in zip(places, ordered[below].tolist(), ordered[above].tolist(), strict=True)
    ]
