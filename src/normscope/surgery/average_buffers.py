r"""Decide what the buffers of an averaged model (EMA, SWA) are.

Averaged *weights* with anyone else's running statistics make a model that is neither. ``AveragedModel`` by default
takes the source's latest buffers; an average written by hand over ``parameters()`` keeps the statistics of the
untrained model it was copied from; either may evaluate far from both. One of three policies, said out loud:

- ``"recalibrate"``: take the statistics anew from data, with the averaged weights. The only one that is right whatever
  the weights; needs a loader and a pass.
- ``"average"``: pool the sources' statistics by the law of total variance. With shares $w_i$,

  $$\mu = \sum_i w_i \mu_i, \qquad \sigma^2 = \sum_i w_i \bigl(\sigma_i^2 + (\mu_i - \mu)^2\bigr).$$

  Right for replicas of *one* model that saw different data; for averaged weights an approximation that improves as the
  sources agree. Averaging variances alone loses the spread of the means.
- ``"copy"``: take the (last) source's statistics. Cheap; close only while source and average are close, as in a slow
  EMA of a nearly converged model.

Buffers that are no running statistics (position tables, counters) are copied from the last source under every policy.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from normscope._errors import DataError, UsageError, shown
from normscope.modules.sites import running
from normscope.modules.state import transaction
from normscope.records.numbers import counted
from normscope.surgery._report import Change, Report, Skip
from normscope.surgery._sites import norms
from normscope.surgery.recalibrate import recalibrate

POLICIES = ("recalibrate", "average", "copy")


def average_buffers(
    averaged: nn.Module,
    source: nn.Module | Sequence[nn.Module],
    policy: str = "recalibrate",
    *,
    loader: Iterable[Any] | None = None,
    call: Callable[[nn.Module, Any], Any] | None = None,
    shares: Sequence[float] | None = None,
    **options: Any,
) -> Report:
    """Set the buffers of an averaged model.

    Args:
        averaged: The averaged model, or an ``AveragedModel`` around it; changed in place. May be one of the sources.
        source: The model, or models, that it averages; of the same architecture.
        policy: ``"recalibrate"``, ``"average"`` or ``"copy"``.
        loader: Data, for ``"recalibrate"``.
        call: As for ``surgery.recalibrate``.
        shares: Weights of the sources, for ``"average"``; equal if None. They are divided by their sum.
        **options: Passed to ``surgery.recalibrate``.

    Returns:
        What was set and how.

    Raises:
        UsageError: An unknown policy, options that do not go with it, or a source of another architecture.
        DataError: ``"recalibrate"`` without data.
    """
    sources = [source] if isinstance(source, nn.Module) else list(source)
    if not isinstance(policy, str) or policy not in POLICIES:
        raise UsageError(f"policy is one of {', '.join(POLICIES)}, not {shown(policy)}")
    if not sources:
        raise UsageError("give the model, or models, that were averaged as source")
    if policy == "recalibrate" and loader is None:
        raise DataError('policy="recalibrate" takes statistics from data: give a loader, or say "average" or "copy"')
    if policy != "recalibrate" and (loader is not None or call is not None or options):
        raise UsageError(f"policy={policy!r} reads no data: loader, call and recalibration options do not go with it")
    weights = [1.0] * len(sources) if shares is None else [float(s) for s in shares]
    if len(weights) != len(sources) or min(weights) < 0 or sum(weights) <= 0:
        raise UsageError(f"shares are one number, not negative, for each of the {len(sources)} sources")
    target = _inner(averaged)
    with transaction(target):
        theirs = [dict(_inner(one).named_buffers()) for one in sources]
        ours = dict(target.named_buffers())
        for number, held in enumerate(theirs):
            if [(n, b.shape) for n, b in held.items()] != [(n, b.shape) for n, b in ours.items()]:
                raise UsageError(
                    f"source {number} has other buffers than the averaged model: not the same architecture"
                )
        done, skipped = _set(target, ours, theirs, [w / sum(weights) for w in weights], policy)
        if policy == "recalibrate":
            assert loader is not None
            report = recalibrate(target, loader, call, **options)
            done += report.done
            skipped += report.skipped
    return Report(averaged, tuple(done), tuple(skipped))


@torch.no_grad()
def _set(
    target: nn.Module, ours: dict[str, Tensor], theirs: list[dict[str, Tensor]], shares: list[float], policy: str
) -> tuple[list[Change], list[Skip]]:
    done: list[Change] = []
    statistics: set[str] = set()
    for site in norms(target):
        own = running(site.module)
        if own is None:
            continue
        names = [f"{site.path}.{name}".lstrip(".") for name in (*own, "num_batches_tracked")]
        statistics.update(names)
        if policy == "average":
            means = torch.stack([held[names[0]].double() for held in theirs])
            variances = torch.stack([held[names[1]].double() for held in theirs])
            w = torch.tensor(shares, dtype=torch.float64, device=means.device).unsqueeze(1)
            mean = (w * means).sum(0)
            variance = (w * (variances + (means - mean).square())).sum(0)
            ours[names[0]].copy_(mean)
            ours[names[1]].copy_(variance)
            if names[2] in ours:
                ours[names[2]].copy_(torch.stack([held[names[2]] for held in theirs]).max())
            done.append(Change(site.path, "statistics pooled", f"of {counted(len(theirs), 'source')}"))
        elif policy == "copy":
            for name in names:
                if name in ours:
                    ours[name].copy_(theirs[-1][name])
            done.append(Change(site.path, "statistics copied", "they belong to the source's weights"))
    others = [name for name in ours if name not in statistics]
    for name in others:
        ours[name].copy_(theirs[-1][name])
    if others:
        done.append(Change("", "other buffers copied", ", ".join(others)))
    return done, []


def _inner(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, (AveragedModel, nn.parallel.DistributedDataParallel)) else model
