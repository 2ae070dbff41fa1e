"""What norms are given in batches from all along the loader: moments of each call, and how much they owe to chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from normscope.evidence.case import Case, length_of
from normscope.evidence.passes import look
from normscope.evidence.places import Place, Places, by_place
from normscope.modules.channels import channels

#: Variance of batch means, over that of batches drawn at random, up to which batches are held to be alike.
ALIKE = 5.0
#: Batches whose means tell whether they vary too much.
FEWEST = 4

_FURTHEST = 20  # batches that are loaded, at most, for each that is looked at


@dataclass(frozen=True, slots=True)
class Moments:
    """What a norm is given in one call.

    Attributes:
        batch: Number of the batch in the loader.
        place: Place of the call: see ``evidence.places``.
        samples: Length of the batch axis.
        count: Values a channel.
        mean: Mean of each channel ``(C,)``, float64.
        variance: Variance of each channel ``(C,)``, divisor ``count``.
        of_means: Unbiased variance over samples of their means over positions ``(C,)``; NaN for one sample.
        of_squares: The same of their mean squared deviations from ``mean``.
    """

    batch: int
    place: Place
    samples: int
    count: int
    mean: Tensor
    variance: Tensor
    of_means: Tensor
    of_squares: Tensor


def spread_out(loader: Any, most: int) -> list[int]:
    """Return the numbers of some batches from all along a loader, within what loading costs.

    Data in order show it only from afar. One batch is drawn from each of as many stretches: batches at an even distance
    might all be of one kind where kinds alternate.
    """
    reach = max(most, min(length_of(loader) or most, _FURTHEST * most))
    edges = [index * reach // most for index in range(most + 1)]
    drawn = torch.rand(most, generator=torch.Generator().manual_seed(0)).tolist()
    return [start + int(part * (end - start)) for start, end, part in zip(edges[:-1], edges[1:], drawn, strict=True)]


def take_moments(case: Case, norms: Mapping[str, Module], batches: Sequence[int]) -> dict[str, list[Moments]]:
    """Return by norm what it is given in each call, over some batches of the loader, in the modes of training.

    Args:
        case: The set-up; left as it was.
        norms: The norms, by name.
        batches: Numbers of the batches, in order.

    Raises:
        UsageError: The loader or the loss raises.
    """
    found: dict[str, list[Moments]] = {}
    places, now = Places(), [0]

    def told(batch: int) -> None:
        now[0] = batch

    def see(path: str, x: Tensor, _arguments: Any) -> None:
        place = places.next(path)
        if x.ndim < 2 or x.numel() <= x.shape[1]:
            return
        seen = channels(x.double() if x.ndim == 2 else x)
        sums, squares = (part.double() / seen.positions for part in seen.deviations())
        count, mean, variance = seen.count, seen.mean.double(), seen.variance.double()
        found.setdefault(path, []).append(
            Moments(now[0], place, len(x), count, mean, variance, sums.var(0), squares.var(0))
        )

    look(case, norms, batches, before=see, told=told, places=places)
    return found


def excess_of_means(calls: Sequence[Moments], kinds: Mapping[int, int] | None = None) -> tuple[float, float] | None:
    """Return how many times as much batch means vary as those of samples drawn at random, and their share of variance.

    Both are medians over the channels that vary at all. Means of batches drawn at random vary by the variance of
    samples over their number.

    Args:
        calls: Of one place.
        kinds: By number of the batch its kind; then means are compared within a kind.

    Returns:
        Both; None where fewer than three means, beyond one for each kind, can be compared.
    """
    calls = [call for call in calls if call.samples > 1]
    groups: dict[int, list[Tensor]] = {}
    for call in calls:
        groups.setdefault(0 if kinds is None else kinds.get(call.batch, 0), []).append(call.mean)
    freedom = len(calls) - len(groups)
    if freedom < 2:
        return None
    size = sum(call.samples for call in calls) / len(calls)
    within = torch.stack([call.of_means for call in calls]).mean(0)
    several = [torch.stack(means) for means in groups.values()]
    between = torch.stack([(means - means.mean(0)).square().sum(0) for means in several]).sum(0) / freedom
    alive = within + between > 1e-12 * torch.cat(several).square().mean(0).clamp(min=1e-30)
    if not bool(alive.any()):
        return None
    times = float((between / (within / size).clamp(min=1e-30))[alive].median())
    return times, float((between / (within + between))[alive].median())


def worst_excess(
    moments: Mapping[str, Sequence[Moments]], kinds: Mapping[int, int] | None = None
) -> dict[str, tuple[float, float]]:
    """Return by norm ``excess_of_means`` at the worst of its places, where `FEWEST` batches or more are known.

    Args:
        moments: By norm what it is given.
        kinds: By number of the batch its kind.
    """
    found = {}
    for path, calls in moments.items():
        places = [several for several in by_place(calls).values() if len(several) >= FEWEST]
        known = [one for several in places if (one := excess_of_means(several, kinds)) is not None]
        if known:  # data in order need not show at all places: what a generator makes is never in order
            found[path] = max(known)
    return found
