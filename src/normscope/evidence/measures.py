"""Small measures that several rules take."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch.nn import Module

from normscope import layers
from normscope.evidence.listening import NormCall


def of_this_library(module: Module) -> bool:
    """Whether a batch norm is this library's: it keeps what it normalized by, and takes data about their mean."""
    return isinstance(module, (layers.BatchNorm1d, layers.BatchNorm2d, layers.BatchNorm3d))


def innermost(by_site: Mapping[str, float]) -> dict[str, float]:
    """Return the values of sites that hold no other site: a model with a parameter of its own is no layer among many.

    Args:
        by_site: Values by qualified name.
    """
    holders = {
        name[:end] for name in by_site for end in [0, *(i for i, char in enumerate(name) if char == ".")] if name
    }
    return {site: value for site, value in by_site.items() if site not in holders}


def by_update(calls: Iterable[NormCall]) -> list[list[NormCall]]:
    """Return the calls of a norm in groups, a group for each update of the optimizer that they belong to."""
    groups: dict[int, list[NormCall]] = {}
    for call in calls:
        groups.setdefault(call.update, []).append(call)
    return list(groups.values())


def distance_of_means(calls: Sequence[NormCall]) -> float:
    """Return how far apart the means of several calls of a norm lie, in standard deviations.

    Of each channel the largest distance between means is divided by the root of the mean variance of the calls; the
    result is the upper quartile over channels.
    """
    means = torch.stack([call.mean for call in calls])
    deviation = torch.stack([call.variance for call in calls]).mean(0).clamp(min=1e-12).sqrt()
    return float(((means.amax(0) - means.amin(0)) / deviation).quantile(0.75))
