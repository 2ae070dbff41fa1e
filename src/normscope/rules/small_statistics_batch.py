"""Batch statistics that are mostly noise."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from normscope import layers
from normscope.evidence import Case, Evidence, Finding, Severity, convert_places, examples, look
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_SPREAD, _CALLS = 0.35, 3


def _scattering(spread: float) -> Case:
    """A norm on data whose batch variances scatter by a known share, as ten batches show it without bias."""
    swing = spread / (1 + 0.25 / 9.25) / (10 / 9) ** 0.5
    variances = [1 + swing, 1 - swing] * 5
    return examples.alone(examples.batch_norm(), [examples.two_values(3.0, variance**0.5) for variance in variances])


class SmallStatisticsBatch(AbstractRule):
    r"""Batch statistics come from so few values that they are mostly noise.

    ## Finds
    For each norm in train mode the batch variance of each channel is taken over a few training batches, and their
    standard deviation over their mean; the median over channels is held against 0.35, which independent normal values
    reach at about 16 a channel (:math:`\sqrt{2/(N-1)}`). With batches that differ little in number of values the bound
    is met from below 16 samples for dense layers; convolutions have the positions besides, so far as they differ.

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
            calls = [call for call in evidence.training.of(path, training=True) if call.finite and call.count > 1]
            if len(calls) < _CALLS or getattr(module, "statistics", "batch") not in ("batch", "sync"):
                continue
            spread = _spread([call.variance for call in calls])
            if spread is not None:
                found[path] = spread, calls[0].count
        if any(spread > _SPREAD for spread, _ in found.values()):
            # Four draws of a spread are themselves a guess, and the weights moved between them: look again, longer.
            again = _again(evidence, [path for path, (spread, _) in found.items() if spread > _SPREAD])
            found |= {path: (spread, found[path][1]) for path, spread in again.items()}
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


def _spread(variances: list[Tensor]) -> float | None:
    """Return the standard deviation of batch variances over their mean, median over channels that vary at all."""
    several = torch.stack(variances)
    mean = several.mean(0)
    alive = mean > 0
    if not bool(alive.any()):
        return None
    # The spread of so few draws is itself biased low: by c4 of their number, 1 - 1 / 4n, for normal values.
    return float((several.std(0)[alive] / mean[alive] * (1 + 0.25 / (len(variances) - 0.75))).median())


def _again(evidence: Evidence, paths: list[str]) -> dict[str, float]:
    taken: dict[str, list[Tensor]] = {}

    def see(path: str, x: Tensor, _: Any) -> None:
        if x.ndim > 1 and x.numel() > x.shape[1]:
            taken.setdefault(path, []).append(x.double().transpose(0, 1).flatten(1).var(1, correction=0))

    look(evidence.case, {path: evidence.norms[path] for path in paths}, max(evidence.batches, _CALLS), before=see)
    several = {path: _spread(seen) for path, seen in taken.items() if len(seen) >= _CALLS}
    return {path: spread for path, spread in several.items() if spread is not None}
