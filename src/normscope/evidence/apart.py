r"""How far apart kinds of data lie that one norm is given, by what shared statistics do to them.

Training normalizes kind i by its own mean and variance, and puts out mean 0 and variance 1. Evaluation normalizes all
by the statistics of the mixture, with variance $V = \bar v + \mathrm{var}(\mu_i)$ by the law of total variance,
and puts out mean $(\mu_i - \bar\mu)/\sqrt V$ and variance $v_i/V$. The Kullback-Leibler divergence of the
second normal distribution from the first is $(m^2 + v - 1 - \ln v)/2$; its mean over the kinds is

$$D = \tfrac12 \left(\ln V - \overline{\ln v_i}\right),$$

as mean squares and variances add up to 1. Two kinds whose means lie one standard deviation apart, and two whose
deviations are as 1 to 2, both have $D = \tfrac12 \ln \tfrac54 = 0.112$.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Divergence from which on kinds of data are held to differ.
APART = 0.5 * math.log(1.25)

_QUANTILE = 0.75  # of channels: a quarter of them must differ


@dataclass(frozen=True, slots=True)
class Apart:
    """How far apart kinds of data lie, each in the upper quartile over channels.

    Attributes:
        divergence: Mean divergence of what evaluation puts out from what training puts out, less what chance makes.
        means: Largest distance of two means, in standard deviations within the kinds.
        deviations: Largest ratio of two standard deviations.
    """

    divergence: float
    means: float
    deviations: float

    def words(self) -> str:
        """Return by how much means and deviations differ, as the end of a sentence."""
        return (
            f"in the upper quartile over channels means lie {self.means:.2g} standard deviations apart, and standard "
            f"deviations are as 1 to {self.deviations:.2g}"
        )


def apart(kinds: Sequence[Sequence[Any]], eps: float) -> Apart:
    """Return how far apart several kinds of data lie.

    Each kind weighs as much as it has calls. By how much the calls of one kind differ among themselves, the calls of
    different kinds may differ too: that much is taken off. If no kind has two calls, it is what independent samples of
    a normal distribution would make, twice. Where a kind varies by less than ``eps``, its mean alone is compared.

    Args:
        kinds: For each kind its calls (``NormCall`` or ``Moments``), over several steps.
        eps: Of the norm, which is added to every variance.
    """
    return apart_in_several([kinds], eps)


def apart_in_several(families: Sequence[Sequence[Sequence[Any]]], eps: float) -> Apart:
    """Return the mean of ``apart`` over several families of kinds, each compared within itself."""
    found = [_by_channel(kinds, eps) for kinds in families]
    divergence, means, ratio = (torch.stack([parts[index] for parts in found]).mean(0) for index in range(3))
    upper = [float(values.quantile(_QUANTILE)) for values in (divergence, means, ratio.exp())]
    return Apart(*upper)


def _by_channel(kinds: Sequence[Sequence[Any]], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    calls = sum(map(len, kinds))
    weights = torch.tensor([len(kind) / calls for kind in kinds], dtype=torch.float64)[:, None]
    means = [torch.stack([call.mean.double().cpu() for call in kind]) for kind in kinds]
    variances = [torch.stack([call.variance.double().cpu() for call in kind]) + eps for kind in kinds]
    mean, variance = (torch.stack([values.mean(0) for values in several]) for several in (means, variances))
    # A kind that does not vary at all, as a state before the first step, comes out as a constant with any statistics.
    varies = variance > 2 * eps
    usual = (weights * variance * varies).sum(0) / (weights * varies).sum(0).clamp(min=1e-12)
    variance = torch.where(varies | ~varies.any(0), variance, usual)
    samples = sum(call.samples for kind in kinds for call in kind) / calls
    within = (weights * variance).sum(0)
    between = (weights * (mean - (weights * mean).sum(0)).square()).sum(0)
    by_chance = _by_chance(means, 2 * within / samples)
    of_logs = _by_chance([values.log() for values in variances], torch.tensor(4 / samples))
    total = (within + (between - by_chance).clamp(min=0)).log() - (weights * variance.log()).sum(0) - of_logs / 2
    distance = (mean.amax(0) - mean.amin(0)) / within.sqrt()
    return (total / 2).clamp(min=0), distance, (variance.amax(0) / variance.amin(0)).log() / 2


def _by_chance(values: Sequence[Tensor], otherwise: Tensor) -> Tensor:
    """Return what variance over kinds their means over calls have, if calls of all kinds differ as those of one do."""
    calls, freedom = sum(map(len, values)), sum(map(len, values)) - len(values)
    if freedom:
        otherwise = sum(((kind - kind.mean(0)).square().sum(0) for kind in values), torch.zeros(())) / freedom
    return sum(len(kind) / calls * (1 - len(kind) / calls) / len(kind) for kind in values) * otherwise
