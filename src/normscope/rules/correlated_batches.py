"""Batches that are not drawn at random."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, SequentialSampler, TensorDataset

from normscope.evidence import (
    ALIKE,
    Case,
    Evidence,
    Finding,
    Severity,
    examples,
    loader_anew,
)
from normscope.rules._rule import AbstractRule

_SHARE = 0.05  # of the variance: below, what the samples of a large batch have in common is too little to matter


def _sorted(net: Any, *, shuffle: bool = False, by: str = "class", **options: Any) -> Case:
    """A loader over data that lie in order: of their class, or of when they were taken."""
    case = examples.healthy(net, **options)
    x, y = (torch.cat(part) for part in zip(*case.loader, strict=True))
    if by == "time":
        drift = torch.linspace(-3, 3, len(x)).view(-1, *[1] * (x.ndim - 1))
        x = x + drift
    else:
        order = torch.sort(y, stable=True).indices
        x, y = x[order], y[order]
        x = x + 1.5 * (y.view(-1, *[1] * (x.ndim - 1)) - 1.5)
    stream = torch.Generator().manual_seed(3)
    case.loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=shuffle, generator=stream)
    return case


def _swinging(times: float) -> Case:
    """A norm on ten batches of 32 whose means vary so many times as much as those of shuffled ones would."""
    shift = (times / 31 * 9 / 10) ** 0.5  # the unbiased variances of 32 values and of 10 means
    order = (1,) * 5 + (-1,) * 5  # in turn they would be two streams
    batches = [examples.two_values(3.0 + 2.0 * sign * shift, 2.0) for sign in order]
    return examples.alone(examples.batch_norm(), batches)


def _sharing(share: float) -> Case:
    """A norm on ten batches of 256, of whose variance this share lies between them."""
    shift = (256 / 255 * share / (1 - share) * 9 / 10) ** 0.5
    batches = [examples.two_values(3.0 + 2.0 * sign * shift, 2.0, 256) for sign in (1,) * 5 + (-1,) * 5]
    return examples.alone(examples.batch_norm(), batches)


class CorrelatedBatches(AbstractRule):
    r"""Samples of a batch are alike: the loader does not shuffle.

    ## Finds
    At each norm that normalizes by the batch, the mean of every sample (over its positions) is taken, over batches from
    all along the loader. For samples drawn at random the variance of batch means is that of samples divided by the size
    of the batch; found is more than 5 times that, in the median over channels, from 4 batches on, if more than 5 % of
    the variance lies between batches: less is seen in large batches, and costs nothing. Samples are counted, not
    positions: those of one image are alike and prove nothing. Batches are compared at the same place, where a norm
    is called at several (levels, time steps, real and generated data): at each by itself. Where kinds of batches
    alternate (NS135), they are compared within their kind.

    Calibrated over six seeds: planted defects found, 24 of 24; false alarms on 47 healthy set-ups under eight
    seeds, 0 of 376.

    ## Why it hurts
    Batch norm subtracts what the samples of a batch have in common. If that is their class, or the day they were
    recorded, training takes away what was to be learnt, and the variance within the batch is a fraction of the true one
    (0.002 of it for a loader sorted by class); in evaluation, with the statistics of all, everything is different.

    ## Fix
    Unsafe: a ``DataLoader`` that reads its data in order is made anew with ``shuffle=True``.
    """

    CODE = "NS120"
    SLUG = "correlated-batches"
    SEVERITY = Severity.WARNING
    KEEPS = ("training", "evaluation")
    SOURCES = ("arXiv:1502.03167 section 4.2.1: shuffle more thoroughly",)
    SICK = (
        examples.Planted(partial(_sorted, examples.mlp), ["1"]),
        examples.Planted(partial(_sorted, examples.cnn, by="time"), ["1"]),
        examples.Planted(partial(_sorted, examples.residual, by="time"), ["stem.1"]),
        examples.Planted(partial(_sorted, examples.sequence), ["norm1"]),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(_sorted, examples.cnn, shuffle=True),
        partial(_sorted, examples.residual, shuffle=True, by="time"),
        partial(examples.healthy, examples.cnn),
    )
    NEAR = (examples.Near(_swinging, found=5.1, quiet=4.9), examples.Near(_sharing, found=0.051, quiet=0.049))

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Compare the variance of batch means with that of samples."""
        if not evidence.updating:
            return
        excess = {path: evidence.excess[path] for path in evidence.updating if path in evidence.excess}
        places = [path for path, (times, share) in excess.items() if times > ALIKE and share > _SHARE]
        if not places:
            return
        times, share = max(excess[path] for path in places)
        yield self.finding(
            f"samples of a batch are alike: the means of batches vary {times:.3g} times as much as those of "
            f"shuffled ones would, and {share:.0%} of the variance lies between batches",
            places,
            quantity="variance of batch means over that of batches drawn at random, median over channels",
            measured=times,
            bound=ALIKE,
            cost="what the samples of a batch have in common is normalized away in training, and present in evaluation",
            fix="shuffle: DataLoader(..., shuffle=True), or mix what lies in order before it is batched",
            fixable=_in_order(evidence.case.loader),
            details={"between_batches": share},
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Make the loader anew with shuffling."""
        case.loader = loader_anew(case.loader, shuffle=True)
        return "made the loader anew with shuffle=True: take it from case.loader"


def _in_order(loader: Any) -> bool:
    return (
        isinstance(loader, DataLoader)
        and isinstance(loader.sampler, SequentialSampler)
        and loader.batch_size is not None
        and type(loader.batch_sampler) is torch.utils.data.BatchSampler
    )
