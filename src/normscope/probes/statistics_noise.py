"""How noisy the statistics of a batch are."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from normscope._errors import UsageError
from normscope.modules.channels import Channels, to_host
from normscope.modules.contents import Content, Group
from normscope.modules.sites import batch_norms, chosen
from normscope.probes._probe import AbstractProbe
from normscope.probes._step import Step
from normscope.probes.remarks import Readings, Remark, Theory, Urgency, amount, beyond
from normscope.records import Record

_NAMES = ("mean_noise", "scale_noise", "mean_noise_ratio", "scale_noise_ratio")
_NOISY = 0.04  # in squared sigma: a fifth of sigma, the noise of 25 independent values


@dataclass(slots=True)
class _Call:
    """A call of a layer: moments of its input, and of a large input the sums of its parts and the fourth powers."""

    content: Content
    parts: Tensor | None = None


class StatisticsNoise(AbstractProbe):
    r"""Noise of a batch's mean and standard deviation, against that of independent values.

    ## Measures
    For each batch norm the batch of the user's own pass is cut along its first axis into ``groups`` equal parts, what
    remains is left out. With $\mu_g, \sigma_g$ the mean and standard deviation of a channel in each part,
    $\sigma^2$ its variance in the whole batch (divisor $m - 1$), $m$ the values a channel in the
    batch and $k$ the number of parts, averaged over channels:

    - ``mean_noise``: $\mathrm{Var}_g[\mu_g] / (k \sigma^2)$: the variance of the batch's mean, in
      $\sigma^2$ ($1/k$ being the size of a part over that of the batch);
    - ``scale_noise``: $\mathrm{Var}_g[\sigma_g] / (k \sigma^2)$: that of its standard deviation;
    - ``mean_noise_ratio``: the first over its value for independent values, $1/m$;
    - ``scale_noise_ratio``: the second over its value for them, $(\rho + 2)/(4m)$, $\rho$ the mean excess
      kurtosis over channels.

    A ratio of r says that the batch is worth as many independent values as $m / r$: positions of one image, or
    samples sorted by class, raise it. The variance over parts has the divisor $k - 1$: without bias, with a
    relative spread of $\sqrt{2/(C(k-1))}$ for C independent channels.

    ## Cost
    Two reads of each layer's input, shared with other probes; fourth powers of at most ``sample`` elements.

    ## Reads wrongly when
    A part holds fewer than about 8 values: the formula for the scale is of first order in 1/m, and with heavy tails
    wants 64. The order of the samples has a meaning (sorted batches raise the ratios, which is the purpose). Channels
    without variance are left out.

    Args:
        sites: Qualified names of modules whose input is read; all batch norms if None.
        groups: Number of parts.
        sample: Number of elements of the layer's input beyond which the kurtosis is taken from a subsample.
        every: Read at every so-many-th step; None takes the scope's schedule.

    Raises:
        UsageError: Fewer than two groups.
    """

    CODE = "statistics_noise"
    SHOWS = "mean_noise"
    QUESTION = "statistics"
    NOTHING = "no batch norm that normalizes by its batch ran in this model"
    STREAMING = True
    SOURCES = (
        "Luo et al. 2019, Towards Understanding Regularization in Batch Normalization (arXiv:1809.00846)",
        "Joanes and Gill 1998, Comparing Measures of Sample Skewness and Kurtosis (the kurtosis without bias, G2)",
    )

    def __init__(
        self,
        sites: Sequence[str] | None = None,
        *,
        groups: int = 8,
        sample: int = 16384,
        every: int | None = None,
    ) -> None:
        super().__init__(every=every)
        if groups < 2:
            raise UsageError(f"{self.CODE}: groups={groups} must be 2 or more")
        self.sites = None if sites is None else tuple(sites)
        self.groups, self.sample = groups, sample

    def watch(self, step: Step) -> None:
        """Reduce the input of each layer to the moments of its parts."""
        layers: dict[str, Module] = step.modules(batch_norms) if self.sites is None else chosen(step.model, self.sites)
        for site, module in layers.items():
            step.on_input(self, module, partial(self._take, step, site))

    def _take(self, step: Step, site: str, x: Tensor) -> None:
        size = x.shape[0] // self.groups
        if x.ndim < 2 or not size or not x.numel():
            return
        calls = step.notes(self).setdefault(site, [])
        content = step.content(x)
        if content.copy is not None and x.numel() <= self.sample:
            content.leads = True
            calls.append(_Call(content))
            return
        moments = step.channels(x)
        parts = torch.cat([*(self._fold(part, size) for part in moments.deviations()), self._fourth(moments)[None]])
        calls.append(_Call(content, parts))

    def _fold(self, part: Tensor, size: int) -> Tensor:
        return part[: size * self.groups].reshape(self.groups, size, -1).sum(1)

    def _fourth(self, moments: Channels) -> Tensor:
        """Mean fourth power of the deviations of each channel."""
        if moments.shift is None:
            return (moments.raw * moments.raw).sum(0) / moments.count
        stride = -(-moments.values.numel() // self.sample)
        while moments.positions % stride == 0 and 1 < stride < moments.positions:
            stride += 1
        # Every so-many-th of a channel's values, along samples and positions.
        if stride >= moments.positions:
            middle = moments.positions // 2
            values = moments.values[:: -(-stride // moments.positions), :, middle : middle + 1]
        else:
            values = moments.values[:, :, stride // 2 :: stride]
        deviations = values if moments.about is not None else values - moments.mean.to(values.dtype)[:, None]
        return ((deviations * deviations) ** 2).mean((0, 2)).to(moments.mean.dtype)

    def read(self, step: Step) -> Iterator[Record]:
        """Yield noises and ratios of each layer; several calls are averaged."""
        return self.records(step, self._values(step))

    def _values(self, step: Step) -> Iterator[tuple[str, str, float]]:
        notes: dict[str, list[_Call]] = step.notes(self)
        if not notes:
            return
        step.settle()
        every = [call for calls in notes.values() for call in calls]
        large = iter(to_host([call.parts for call in every if call.parts is not None]))
        groups = {id(call.content.group): call.content.group for call in every if call.parts is None}
        of_small = {key: self._of(group, *self._parts(group)) for key, group in groups.items()}
        found = iter(
            [
                of_small[id(call.content.group)][call.content.index]
                if call.parts is None
                else self._of_large(call.content, next(large))
                for call in every
            ]
        )
        for site, calls in notes.items():
            rows = [next(found) for _ in calls]
            values = rows[0] if len(rows) == 1 else np.mean(rows, axis=0).tolist()
            for name, value in zip(_NAMES, values, strict=True):
                yield site, name, value

    def _parts(self, group: Group) -> tuple[int, np.ndarray]:
        """Return the number of values in a part, and by channel the sums of each part and the fourth powers."""
        k, width = self.groups, sum(group.widths[: group.leading])
        assert group.total is not None
        assert group.raw is not None
        assert group.squares is not None
        total, raw, squares = group.total[:, :width], group.raw[:, :width], group.squares[:, :width]
        samples = len(total)
        size = samples // k
        fourth = squares * squares
        fourth = np.add.reduce(fourth, axis=2) if fourth.ndim > 2 else fourth
        folded = [np.add.reduce(rows[: size * k].reshape(k, size, width), axis=1) for rows in (total, raw)]
        return size * group.count // samples, np.concatenate(
            [*folded, np.add.reduce(fourth, axis=0)[None] / group.count]
        )

    def _of_large(self, content: Content, parts: np.ndarray) -> list[float]:
        each = content.samples // self.groups * content.positions
        return self._of(content.group, each, parts, content)[0]

    def _of(self, group: Group, each: int, rows: np.ndarray, content: Content | None = None) -> list[list[float]]:
        """Return the four values of each leading content of a group, or of one content."""
        k, count = self.groups, group.count
        variance, starts = group.variance[: rows.shape[1]], group.starts[: group.leading]
        if content is not None:
            variance, starts = content.variance, [0]
        with np.errstate(all="ignore"):
            means, squares = rows[:k] / each, rows[k : 2 * k] / each
            parts = np.array([means, np.sqrt(np.maximum(squares - means * means, 0))])
            parts -= np.add.reduce(parts, axis=1, keepdims=True) / k
            noise = np.add.reduce(parts * parts, axis=1) * (each / count / (k - 1))
            unbiased = variance * (count / (count - 1)) if count > 1 else variance * np.nan
            ratios = np.concatenate([noise / unbiased, (rows[2 * k] / variance**2)[None], np.ones((1, len(variance)))])
            ratios[:, variance <= 0] = 0  # channels without variance are left out
            # A layer that has no other channels has no value.
            mean_noise, scale_noise, kurtosis, alive = np.add.reduceat(ratios, starts, axis=1)
            mean_noise, scale_noise, kurtosis = mean_noise / alive, scale_noise / alive, kurtosis / alive
            expected = (_excess(kurtosis, count) + 2) / (4 * count)
            ratio = np.where(expected > 0, scale_noise / expected, np.nan)
        return np.array([mean_noise, scale_noise, mean_noise * count, ratio]).T.tolist()

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of batch statistics that differ much from batch to batch."""
        if noisy := beyond(readings, "mean_noise", above=_NOISY):
            yield noisy.remark(
                "the batch mean of {site} wavers by {value} sigma from batch to batch",
                "the batch mean wavers from batch to batch in {where}, most in {site}: by {value} sigma",
                lambda variance: amount(math.sqrt(max(variance, 0.0))),
                Urgency.NOTABLE,
                "batch norm",
            )
        if sharp := beyond(readings, "scale_noise", above=_NOISY):
            yield sharp.remark(
                "the batch standard deviation of {site} wavers by {value} sigma from batch to batch",
                "the batch standard deviation wavers from batch to batch in {where}, most in {site}: by {value} sigma",
                lambda variance: amount(math.sqrt(max(variance, 0.0))),
                Urgency.NOTABLE,
                "batch norm",
            )

    @classmethod
    def theory(cls, readings: Readings) -> Theory:
        """Draw the noise of independent values."""
        return dict.fromkeys(("mean_noise_ratio", "scale_noise_ratio"), ("independent values", 1.0))


def _excess(kurtosis: np.ndarray, count: int) -> np.ndarray:
    """Excess kurtosis, without bias for normal values."""
    if count < 4:
        return kurtosis - 3
    return (count - 1) / ((count - 2) * (count - 3)) * ((count + 1) * (kurtosis - 3) + 6)
