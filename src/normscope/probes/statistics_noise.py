"""How noisy the statistics of a batch are."""

import math
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from normscope._errors import UsageError
from normscope.modules.channels import Channels, channels, to_host
from normscope.modules.sites import batch_norms, chosen
from normscope.probes._probe import AbstractProbe
from normscope.probes._remarks import Readings, Remark, Theory, Urgency, amount, beyond
from normscope.probes._step import Step
from normscope.records import Record

_NOISY = 0.04  # in squared sigma: a fifth of sigma, the noise of 25 independent values


class StatisticsNoise(AbstractProbe):
    r"""Noise of a batch's mean and standard deviation, against that of independent values.

    ## Measures
    For each batch norm the batch of the user's own pass is cut along its first axis into ``groups`` equal parts, what
    remains is left out. With :math:`\mu_g, \sigma_g` the mean and standard deviation of a channel in each part,
    :math:`\sigma^2` its variance in the whole batch (divisor :math:`m - 1`), :math:`m` the values a channel in the
    batch and :math:`k` the number of parts, averaged over channels:

    - ``mean_noise``: :math:`\mathrm{Var}_g[\mu_g] / (k \sigma^2)`: the variance of the batch's mean, in
      :math:`\sigma^2` (:math:`1/k` being the size of a part over that of the batch);
    - ``scale_noise``: :math:`\mathrm{Var}_g[\sigma_g] / (k \sigma^2)`: that of its standard deviation;
    - ``mean_noise_ratio``: the first over its value for independent values, :math:`1/m`;
    - ``scale_noise_ratio``: the second over its value for them, :math:`(\rho + 2)/(4m)`, :math:`\rho` the mean excess
      kurtosis over channels.

    A ratio of r says that the batch is worth as many independent values as :math:`m / r`: positions of one image, or
    samples sorted by class, raise it. The variance over parts has the divisor :math:`k - 1`: without bias, with a
    relative spread of :math:`\sqrt{2/(C(k-1))}` for C independent channels.

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
        moments = step.memo(x, "channels", channels)
        parts = torch.cat(
            [
                *(self._fold(part, size) for part in moments.deviations()),
                moments.variance[None],
                self._fourth(moments)[None],
            ]
        )
        step.notes(self).setdefault(site, []).append((parts, moments.count, size * moments.positions))

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
        for site, calls in step.notes(self).items():
            host = to_host([parts for parts, _, _ in calls])
            rows = [self._of(part, count, each) for part, (_, count, each) in zip(host, calls, strict=True)]
            names = ("mean_noise", "scale_noise", "mean_noise_ratio", "scale_noise_ratio")
            for name, value in zip(names, np.mean(rows, axis=0).tolist(), strict=True):
                yield self.record(step, site, name, value)

    def _of(self, parts: np.ndarray, count: int, each: int) -> list[float]:
        k = self.groups
        variance, fourth = parts[-2], parts[-1]
        with np.errstate(all="ignore"):
            alive = ~(variance <= 0)
            means, squares = parts[:k, alive] / each, parts[k : 2 * k, alive] / each
            sigmas = np.sqrt(np.maximum(squares - means**2, 0))
            unbiased = variance[alive] * (count / (count - 1)) if count > 1 else variance[alive] * np.nan
            if not unbiased.size:
                return [np.nan] * 4
            mean, scale = (_variance(values) * (each / count) / unbiased for values in (means, sigmas))
            excess = _excess(float((fourth[alive] / variance[alive] ** 2).sum() / unbiased.size), count)
        mean_noise, scale_noise = float(mean.sum() / mean.size), float(scale.sum() / scale.size)
        expected = (excess + 2) / (4 * count)
        return [
            mean_noise,
            scale_noise,
            mean_noise * count,
            scale_noise / expected if expected > 0 else float("nan"),
        ]

    @classmethod
    def stands_out(cls, readings: Readings) -> Iterator[Remark]:
        """Tell of batch statistics that differ much from batch to batch."""
        if noisy := beyond(readings, "mean_noise", above=_NOISY):
            yield noisy.remark(
                "the batch mean of {site} wavers by {value} sigma from batch to batch",
                "the batch mean wavers from batch to batch in {where}, most in {site}: by {value} sigma",
                lambda variance: amount(math.sqrt(variance)),
                Urgency.NOTABLE,
                "batch norm",
            )
        if sharp := beyond(readings, "scale_noise", above=_NOISY):
            yield sharp.remark(
                "the batch standard deviation of {site} wavers by {value} sigma from batch to batch",
                "the batch standard deviation wavers from batch to batch in {where}, most in {site}: by {value} sigma",
                lambda variance: amount(math.sqrt(variance)),
                Urgency.NOTABLE,
                "batch norm",
            )

    @classmethod
    def theory(cls, readings: Readings) -> Theory:
        """Draw the noise of independent values."""
        return dict.fromkeys(("mean_noise_ratio", "scale_noise_ratio"), ("independent values", 1.0))


def _variance(values: np.ndarray) -> np.ndarray:
    """Variance over the first axis, without bias."""
    centred = values - values.sum(0) / len(values)
    return np.einsum("kc,kc->c", centred, centred) / (len(values) - 1)


def _excess(kurtosis: float, count: int) -> float:
    """Excess kurtosis, without bias for normal values."""
    if count < 4:
        return kurtosis - 3
    return (count - 1) / ((count - 2) * (count - 3)) * ((count + 1) * (kurtosis - 3) + 6)
