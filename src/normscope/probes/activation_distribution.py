"""How the outputs of layers are distributed."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from normscope._errors import UsageError
from normscope.modules.autocast import without_autocast
from normscope.modules.channels import coprime_stride, in_memory_order
from normscope.modules.contents import Content, Copy, Group, is_small
from normscope.modules.sites import chosen, pre_activations
from normscope.probes._probe import AbstractProbe
from normscope.probes._step import Step
from normscope.probes.remarks import Readings, Remark, Urgency, amount, called, counted, decades, sentence, times
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
    ``mean``, ``std`` (of the population, divisor $n$), and the percentiles ``p15``, ``p50``, ``p85`` by linear
    interpolation. The output of a norm or of a linear or convolutional layer is a pre-activation: the input of
    the following non-linearity. A site that is called several times is pooled over its calls.

    For more than ``sample`` elements, percentiles are taken of a subsample: every k-th element in memory order, with k
    the smallest step that leaves at most ``sample`` elements and has no factor in common with their number, so that all
    channels and positions are met evenly. No random number is drawn. The standard error of a percentile from 4096
    independent normal values is about 0.02 standard deviations. ``mean`` and ``std`` always use every element.

    ## Cost
    Two reads of each site's output, shared with other probes, and a sort of at most ``sample`` elements. An output of
    up to 16384 elements is copied, once for all probes, and read with all others when the step is over. Mean and
    variance of what torch's own batch norm makes of a larger batch follow from those of its input, without a read.

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

    def __init__(self, sites: Sequence[str] | None = None, *, sample: int = 4096, every: int | None = None) -> None:
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
            known: list[Content] = []
            if isinstance(module, _BatchNorm):
                step.on_module(self, module, partial(self._ran, step, known))
            step.on_output(self, module, partial(self._take, step, notes, site, known))

    @staticmethod
    def _ran(step: Step, known: list[Content], module: Any, inputs: Any, output: Any) -> None:
        known.clear()
        if isinstance(output, Tensor) and not is_small(output) and inputs and isinstance(inputs[0], Tensor):
            with without_autocast():
                content = step.normalized_content(module, inputs[0].detach(), output)
            known += [] if content is None else [content]

    def _take(self, step: Step, notes: dict[str, Any], site: str, known: list[Content], output: Tensor) -> None:
        if not output.numel():
            return
        # Only moments and the subsample of a large output are kept, not the output itself.
        sample = None if is_small(output) else step.copied(self._sampled(in_memory_order(output)))
        content = known.pop() if known else step.content(output if output.ndim > 1 else output.reshape(1, -1))
        notes.setdefault(site, []).append((content, sample))

    def _sampled(self, flat: Any) -> Any:
        count = len(flat)
        return flat if count <= self.sample else flat[:: coprime_stride(count, self.sample)]

    def _sample(self, content: Content, sample: Copy | None) -> Any:
        if sample is not None:
            return sample.array
        assert content.copy is not None
        return self._sampled(content.copy.flat())

    def read(self, step: Step) -> Iterator[Record]:
        """Yield five values a site, in the order of first use."""
        return self.records(step, self._values(step))

    def _values(self, step: Step) -> Iterator[tuple[str, str, float]]:
        notes: dict[str, list[tuple[Content, Copy | None]]] = step.notes(self)
        if not notes:
            return
        step.settle()
        every = [call for calls in notes.values() for call in calls]
        samples = [self._sample(*call) for call in every]
        groups = {id(content.group): content.group for content, _ in every}
        moments = {key: _by_content(group) for key, group in groups.items()}
        found = [(moments[id(content.group)][content.index], content) for content, _ in every]
        sizes = [0, *accumulate(len(calls) for calls in notes.values())]
        single = len(found) == len(notes)
        levels = _percentiles(
            samples if single else [np.concatenate(samples[first:last]) for first, last in pairwise(sizes)]
        )
        for site, (first, last), percentiles in zip(notes, pairwise(sizes), levels, strict=True):
            mean, variance = found[first][0] if last == first + 1 else _pooled(found[first:last])
            yield site, "mean", mean
            yield site, "std", math.sqrt(variance)
            for name, value in zip(_NAMES, percentiles, strict=True):
                yield site, name, value

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
        inner = list(late)[:-1]  # the last layer's outputs grow as the network learns: they are logits, or the targets
        grown = {site: late[site] / first[site] for site in inner if first.get(site, 0.0) > 0}
        most = max(grown, key=lambda site: grown[site], default=None)
        if most is not None and grown[most] > _GROWN:
            says = (
                f"The outputs of {called(most)} spread {times(grown[most])} as wide as at step {readings.first_step:,}."
            )
            yield Remark(says, Urgency.NOTABLE, decades(grown[most], _GROWN), (most,), "std")
        positive = {site: std for site, std in late.items() if std > 0}
        if len(positive) > 1:
            wide, narrow = max(positive, key=positive.__getitem__), min(positive, key=positive.__getitem__)
            ratio = positive[wide] / positive[narrow]
            if ratio > _UNEVEN and not (wide == most and grown[wide] > _GROWN):  # else it is said already
                says = f"The outputs of {called(wide)} spread {times(ratio)} as wide as those of {called(narrow)}."
                yield Remark(says, Urgency.NOTABLE, decades(ratio, _UNEVEN), (wide, narrow), "std")


def _by_content(group: Group) -> list[list[float]]:
    """Return mean and variance over the channels of each content: by the law of total variance, within and between."""
    with np.errstate(all="ignore"):
        widths = np.array(group.widths, dtype=float)
        centre = group.by_content(group.mean) / widths
        spread = group.variance + (group.mean - np.repeat(centre, group.widths)) ** 2
        return np.array([centre, group.by_content(spread) / widths]).T.tolist()


def _pooled(calls: Sequence[tuple[list[float], Content]]) -> tuple[float, float]:
    """Return mean and variance over several calls of a layer, by the same law."""
    counts = [content.count * content.channels for _, content in calls]
    total = sum(counts)
    mean = sum(count * at for count, ((at, _), _) in zip(counts, calls, strict=True)) / total
    return mean, sum(
        count * (variance + (at - mean) ** 2) for count, ((at, variance), _) in zip(counts, calls, strict=True)
    ) / total


def _percentiles(samples: Sequence[np.ndarray]) -> list[list[float]]:
    """Interpolate linearly between order statistics, as ``numpy.percentile`` does; NaN if any value is."""
    alike: dict[tuple[int, np.dtype], list[int]] = {}
    for index, sample in enumerate(samples):
        alike.setdefault((sample.size, sample.dtype), []).append(index)
    found: list[list[float]] = [[]] * len(samples)
    for (size, _), indices in alike.items():
        ordered = np.array([samples[index] for index in indices])
        ordered.sort(axis=1)  # faster than the partition around six places
        places = [level * (size - 1) for level in _LEVELS]
        below = [math.floor(place) for place in places]
        columns = [*below, *(min(at + 1, size - 1) for at in below), size - 1]
        # Of so few numbers, with Python's own arithmetic, which takes less than NumPy's calls.
        for index, (*ends, last) in zip(indices, ordered[:, columns].tolist(), strict=True):
            found[index] = [
                math.nan if last != last else _between(low, high, place - at)  # NaN comes last
                for low, high, place, at in zip(ends[: len(below)], ends[len(below) :], places, below, strict=True)
            ]
    return found


def _between(low: float, high: float, share: float) -> float:
    # Equal neighbours first: between two infinities there is nothing to interpolate.
    return low if low == high else low + (high - low) * share
