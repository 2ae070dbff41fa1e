"""Batch statistics that are mostly noise."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from normscope import layers
from normscope.evidence import ALIKE, Case, Evidence, Finding, Moments, Severity, by_place, convert_places, examples
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_SPREAD, _CALLS = 0.35, 3


def _scattering(spread: float) -> Case:
    """A norm on data whose batch variances scatter by a known share, as ten batches show it without bias."""
    swing = spread / (1 + 0.25 / 9.25) / (10 / 9) ** 0.5
    about = torch.linspace(-1, 1, 10)[[0, 9, 1, 8, 2, 7, 3, 6, 4, 5]]  # all differ: two in turn would be two streams
    variances = (1 + swing * about / about.std(correction=0)).tolist()
    return examples.alone(examples.batch_norm(), [examples.two_values(3.0, variance**0.5) for variance in variances])


class SmallStatisticsBatch(AbstractRule):
    r"""Batch statistics come from so few values that they are mostly noise.

    ## Finds
    For each norm in train mode the batch variance of each channel is taken over a few training batches, and their
    standard deviation over their mean; the median over channels is held against 0.35, which independent normal values
    reach at about 16 a channel ($\sqrt{2/(N-1)}$). With batches that differ little in number of values the bound
    is met from below 16 samples for dense layers; convolutions have the positions besides, so far as they differ. Calls
    are compared with those of the same place in other steps, and of the same stream where streams of batches alternate:
    levels, time steps and kinds of data differ without any noise. Places with as many values a channel count as one.
    Where batches are not drawn at random (NS120), the bound must be met by what the samples of a batch let expect too.

    Calibrated over six seeds: planted defects found, 18 of 18; false alarms on 47 healthy set-ups under eight
    seeds, 0 of 376.

    ## Why it hurts
    Every activation is multiplied by the noise of its batch's standard deviation, and shifted by that of its mean. Some
    of it regularises; much of it hides the signal, and the running statistics, which are an average, are not those that
    training normalized by: the loss in evaluation differs from that in training.

    ## Fix
    Unsafe: statistics over groups of channels of one sample (group normalization) in place of the batch's, groups of
    eight values at least; a norm of fewer values a sample is left. A trained network has to be trained on. Others:
    statistics of all processes (``statistics="sync"``), or corrected by the running ones (``statistics="renorm"``).
    """

    CODE = "NS105"
    SLUG = "small-statistics-batch"
    SEVERITY = Severity.WARNING
    KEEPS = ()
    SOURCES = ("open-mmlab/mmdetection#3621",)
    SICK = (
        partial(examples.healthy, examples.mlp, size=4),
        partial(examples.healthy, examples.mlp, size=6, depth=5),
        partial(examples.healthy, examples.mlp, size=8, norm=layers.BatchNorm1d, width=32),
    )
    WELL = (
        partial(examples.healthy, examples.mlp, size=64),
        partial(examples.healthy, examples.cnn, size=16),
        partial(examples.healthy, examples.residual, size=8),
    )
    NEAR = (examples.Near(_scattering, found=0.36, quiet=0.34),)

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Compare the batch variances of a few batches."""
        if not evidence.norms:
            return
        found: dict[str, tuple[float, int]] = {}
        for path, module in evidence.norms.items():
            if getattr(module, "statistics", "batch") not in ("batch", "sync"):
                continue
            calls = [call for call in evidence.training.of(path, training=True) if call.finite and call.count > 1]
            found |= _scatter(path, by_place(calls))
        if any(spread > _SPREAD for spread, _ in found.values()):
            # Four draws of a spread are themselves a guess, and the weights moved between them: look again, longer.
            in_order = any(times > ALIKE for times, _ in evidence.excess.values())
            for path in [path for path, (spread, _) in found.items() if spread > _SPREAD]:
                found |= _scatter(path, _alike(evidence, path))
                if in_order and _by_chance(evidence.moments.get(path, [])) <= _SPREAD:
                    del found[path]  # batches of one class, or of one day, differ in variance as in all else: NS120
        places = [path for path, (spread, _) in found.items() if spread > _SPREAD]
        if not places or len(places) < max(1, len(found) // 3):  # one layer in many: chance, or a rare channel
            return
        worst = max(places, key=lambda path: found[path][0])
        # One cause, the size of the batch: whoever has as few values is meant, even if chance kept it below the bound.
        places = [path for path, (_, count) in found.items() if count <= found[worst][1]]
        yield self.finding(
            f"the variance of a batch scatters by {found[worst][0]:.0%} from batch to batch: it is taken over "
            f"{found[worst][1]} values a channel",
            places,
            quantity="standard deviation of the batch variance over its mean",
            measured=found[worst][0],
            bound=_SPREAD,
            fix="normalize over something else than the batch: normscope.surgery.convert(model, to='group'), or renorm",
            details={"values_a_channel": float(found[worst][1])},
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Convert the norms of the finding to group normalization."""
        return (
            f"converted {counted(convert_places(case, finding, 'group'), 'norm')} to group normalization, gains and "
            "shifts kept"
        )


def _alike(evidence: Evidence, path: str) -> dict[Any, list[Any]]:
    """Return what a norm is given, in groups of one place and one stream each."""
    streams = evidence.streams
    groups: dict[Any, list[Any]] = {}
    for call in evidence.moments.get(path, []):
        stream = 0 if streams is None else streams.of_batch.get(call.batch, 0)
        groups.setdefault((call.place, stream), []).append(call)
    return groups


def _by_chance(calls: Sequence[Moments]) -> float:
    """Return the spread that the samples of each batch let expect, in the largest median over channels of a call."""
    each = [(call.of_squares / call.samples).sqrt() / call.variance.clamp(min=1e-300) for call in calls]
    return max((float(one.nanmedian()) for one in each), default=0.0)


def _scatter(path: str, groups: Mapping[Any, list[Any]]) -> dict[str, tuple[float, int]]:
    """Return by the norm's path the largest spread of groups with as many values a channel, and that number."""
    by_count: dict[int, list[list[Tensor]]] = {}
    for calls in groups.values():
        if len(calls) >= _CALLS:
            count = int(torch.tensor([call.count for call in calls]).median())
            by_count.setdefault(count, []).append([call.variance.cpu() for call in calls])
    spreads = {count: _spread(several) for count, several in by_count.items()}
    known = [(spread, count) for count, spread in spreads.items() if spread is not None]
    return {path: max(known)} if known else {}


def _spread(groups: list[list[Tensor]]) -> float | None:
    """Return the standard deviation of batch variances over their mean, median over channels that vary at all."""
    squares, freedom = torch.zeros(()), torch.zeros(())
    for variances in groups:
        several = torch.stack(variances).double()
        mean, left = several.mean(0), len(several) - 1
        alive = mean > 0
        squares = squares + torch.where(alive, several.var(0) / mean.square().clamp(min=1e-300) * left, 0.0)
        freedom = freedom + alive * left
    alive = freedom > 0
    if not bool(alive.any()):
        return None
    # The spread of so few draws is itself biased low: by c4 of their number, 1 - 1 / 4n, for normal values.
    spread = (squares[alive] / freedom[alive]).sqrt() * (1 + 0.25 / (freedom[alive] + 0.25))
    return float(spread.median())
