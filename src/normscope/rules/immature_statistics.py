"""Running statistics that have seen too little."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from normscope.evidence import (
    Case,
    Evidence,
    Finding,
    Severity,
    as_made,
    examples,
    modules_of,
    recalibrate_places,
    shifts_differ,
)
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule
from normscope.surgery import recalibrate

_LEFT = 0.05
_SCALE, _CHANNELS = 0.5, 0.1  # a variance twice that of the data, in a tenth of the channels: the bounds of NS102


def _reset(model: nn.Module) -> None:
    for norm in examples.norms(model):
        norm.reset_running_stats()


@torch.no_grad()
def _slow(model: nn.Module) -> None:
    """As after a fine-tuning that was short for its momentum."""
    for norm in examples.norms(model):
        norm.reset_running_stats()
        norm.momentum = 0.01
    for x, _ in examples.data((3, 8, 8), seed=1):
        model(x)


def _converted(model: nn.Module) -> None:
    """As a checkpoint of another framework: true statistics, and no count."""
    for norm in examples.norms(model):
        norm.num_batches_tracked.zero_()


def _recalibrated(model: nn.Module) -> None:
    """As after few batches of training and a recalibration over few batches."""
    recalibrate(model, examples.data((3, 8, 8), seed=1, batches=6), examples.loss_fn)


def _counted(count: int, momentum: float = 0.1) -> Case:
    """A norm on the data whose running statistics are those of so many batches after the initial values."""
    left, x = (1 - momentum) ** count, examples.two_values(3.0, 2.0)
    variance = (1 - left) * 4.0 * 32 / 31 + left
    norm = examples.batch_norm(mean=(1 - left) * 3.0, variance=variance, momentum=momentum)
    norm.num_batches_tracked.fill_(count)
    return examples.alone(norm, [x] * 4, eval_loader=[x])


class ImmatureStatistics(AbstractRule):
    r"""Running statistics still hold much of their initial values, or nothing else.

    ## Finds
    A norm that is evaluated with running statistics of which the initial mean 0 and variance 1 make up more than 5 %:
    $(1-m)^{n} > 0.05$ for momentum m and n batches tracked, unless they lie nearer to the statistics of the
    training data than to that mixture (recalibrated ones do, and their count says how many batches that took). Where
    the data's variance is so small that what is left of the initial 1 is more than half of the running variance (and of
    eps) in a tenth of the channels, the count does not matter. An error if they are exactly 0 and 1. A count of 0 with
    other values is a converted checkpoint, and fits. A network in which nothing shows training is left alone: the
    buffers of every norm as made, counts of 0, an optimizer without state, and gains of 1 (or 0) and shifts of 0, or a
    loss that is no lower than with the numbers of each parameter in another order. So is a norm that training and
    evaluation use alike: frozen, or in eval mode in a model that trains. A checkpoint alone is judged by its
    counts, and by shifts that differ from channel to channel: a recalibrated one may be named there.

    Norms of classes of other libraries are judged by their counts and by exact initial values, but for those that their
    class freezes.

    ## Why it hurts
    A variance that is still near 1 where the data's is 0.01 has every channel put out a tenth of what it was trained
    to: the loss in evaluation starts far above that of training and comes down only slowly. Small momentum (0.01, for
    stability) and short fine-tuning meet here.

    ## Fix
    Unsafe: ``surgery.recalibrate`` on the training data, which changes what evaluation computes and no weight.
    """

    CODE = "NS109"
    SLUG = "immature-statistics"
    SEVERITY = Severity.WARNING
    NEEDS = ("evaluation",)
    BUFFERS_ONLY = True
    KEEPS = ("training",)
    SOURCES = ("keras-team/keras#10666",)
    SICK = (
        partial(examples.healthy, examples.mlp, change=_reset),
        partial(examples.healthy, examples.cnn, change=_slow),
        partial(examples.healthy, examples.residual, trained=5),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(examples.healthy, examples.cnn, change=_converted),
        partial(examples.healthy, examples.residual, trained=40),
        partial(examples.healthy, examples.mlp, trained=0),
        partial(examples.healthy, examples.cnn, trained=5, change=_recalibrated),
    )
    NEAR = (
        examples.Near(_counted, found=28, quiet=29),
        examples.Near(partial(_counted, momentum=0.01), found=298, quiet=299),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Count the batches tracked, and hold the buffers of young averages against the data."""
        if evidence.case.eval_loader is None or evidence.untrained:
            return
        norms = {
            path: dict(module.named_buffers(recurse=False)) | {"momentum": module.momentum}
            for path, module in evidence.tracking.items()
            if path not in evidence.held
        }

        def share(path: str, left: float) -> float:
            """Return what part of the running statistics initial values make up, once the data agree that they do."""
            most = left if left > _LEFT else _of_small_scale(evidence, path, left)
            return most if most and _is_mixture(evidence, path, left) else 0.0

        yield from self._of(norms, fixable=True, share=share)
        modules = {path: other.module for path, other in evidence.other_norms.items()}
        others = evidence.buffers_elsewhere(moving=True)
        momenta = {path: getattr(modules[path], "momentum", None) for path in others}
        yield from self._of({path: kept | {"momentum": momenta[path]} for path, kept in others.items()}, fixable=False)

    def examine_buffers(self, norms: Mapping[str, Mapping[str, Any]]) -> Iterable[Finding]:
        """Count the batches tracked, at torch's default momentum."""
        if as_made(norms) and not shifts_differ(norms):
            return
        yield from self._of({path: {**found, "momentum": 0.1} for path, found in norms.items()}, fixable=False)

    def _of(
        self,
        norms: Mapping[str, Mapping[str, Any]],
        *,
        fixable: bool,
        share: Callable[[str, float], float] = lambda path, left: left if left > _LEFT else 0.0,
    ) -> Iterable[Finding]:
        initial, young = [], {}
        for path, found in norms.items():
            mean, variance = found.get("running_mean"), found.get("running_var")
            count, momentum = found.get("num_batches_tracked"), found["momentum"]
            if mean is None or variance is None:
                continue
            if not bool(mean.any()) and bool((variance == 1).all()):
                initial.append(path)
            elif isinstance(count, torch.Tensor) and int(count) > 0 and momentum:
                young[path] = share(path, (1 - momentum) ** int(count))
        young = {path: part for path, part in young.items() if part}
        if initial:
            yield self.finding(
                f"{len(initial)} of {counted(len(norms), 'norm')} still {'has' if len(initial) == 1 else 'have'} the "
                "running mean 0 and variance 1 of a new layer",
                initial,
                quantity="share of the initial values in the running statistics",
                measured=1.0,
                bound=_LEFT,
                cost="evaluation does not normalize there",
                fix="take the statistics from the training data: normscope.surgery.recalibrate(model, loader)",
                severity=Severity.ERROR,
                fixable=fixable,
            )
        if young:
            worst = max(young.values())
            yield self.finding(
                f"the running statistics of {len(young)} of {counted(len(norms), 'norm')} are up to {worst:.0%} "
                "initial values",
                list(young),
                quantity="share of the initial values in the running statistics",
                measured=worst,
                bound=_LEFT,
                cost="evaluation normalizes by them, training does not",
                fix="take the statistics from the training data: normscope.surgery.recalibrate(model, loader)",
                fixable=fixable,
            )

    def repair(self, case: Case, finding: Finding) -> str:
        """Recalibrate, and count as many batches as make the average mature."""
        done = recalibrate_places(case, finding)
        for module in modules_of(case, finding):
            module.num_batches_tracked.zero_()  # the values are not a moving average any more
        return f"recalibrated {counted(done, 'norm')} on the training data"


def _of_small_scale(evidence: Evidence, path: str, left: float) -> float:
    """Return the share of the initial variance 1 in the running variance where the data's is so small that it counts.

    It is the median over the channels in which it is more than half, where these are a tenth of all; else 0. A channel
    that is constant has no scale, and is put out as a constant anyway.
    """
    module = evidence.tracking[path]
    part = left / (module.running_var.double().clamp(min=0) + module.eps)
    if not float((part > _SCALE).double().mean()) > _CHANNELS:
        return 0.0
    mean, variance = evidence.statistics.mean[path], evidence.statistics.variance[path]
    off = (part > _SCALE) & (variance > 1e-12 * mean.square()) & (variance > 0)
    if not float(off.double().mean()) > _CHANNELS:
        return 0.0
    return min(1.0, float(part[off].median()))


def _is_mixture(evidence: Evidence, path: str, left: float) -> bool:
    """Whether running statistics are nearer to the data's mixed with initial values than to those of the data."""
    module, seen = evidence.tracking[path], evidence.statistics
    mean, variance = seen.mean[path], seen.variance[path].clamp(min=1e-30)
    here, spread = module.running_mean.double(), module.running_var.double().clamp(min=1e-30)

    def distance(mean: torch.Tensor, variance: torch.Tensor) -> float:
        of_means = (here - mean).square() / (variance + module.eps)
        return float((of_means + (spread / variance).log().square()).mean())

    return distance((1 - left) * mean, (1 - left) * variance + left) <= distance(mean, variance)
