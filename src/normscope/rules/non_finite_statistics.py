"""Running statistics that are no numbers."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope.evidence import (
    Case,
    Evidence,
    Finding,
    Severity,
    examples,
    modules_of,
    recalibrate_places,
)
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule
from normscope.surgery import statistics_of

_HUGE = 1e30


def _poison(model: nn.Module, value: float) -> None:
    norm = examples.norms(model)[-1]
    with torch.no_grad():
        norm.running_mean[0] = value
        norm.running_var[0] = value


def _negative(model: nn.Module) -> None:
    with torch.no_grad():
        examples.norms(model)[0].running_var[1] = -0.5


def _planted(value: float) -> Case:
    norm = examples.batch_norm()
    norm.running_var[5] = value
    return examples.alone(norm, [examples.two_values(1.0, 2.0)] * 4)


class NonFiniteStatistics(AbstractRule):
    r"""Running statistics are not finite, negative, or too large to be any.

    ## Finds
    A running mean or variance that is NaN, infinite or beyond 1e30, or a variance below zero, in the buffers as they
    are, of norms of any class; or a training batch that makes them so, with the first layer whose output is not finite
    though its input is.

    ## Why it hurts
    One batch with a NaN leaves the running statistics NaN for ever, however many clean ones follow: an average forgets
    nothing that is not a number. Training goes on, since it normalizes by the batch; every evaluation gives NaN. A
    gradient scaler skips the update of such a batch, but not that of the buffers. One value of 1e20 makes the variance
    so large that evaluation puts out a constant.

    ## Fix
    Unsafe: the statistics are set to those of the training data, where that is finite. To keep it from happening again
    use this library's layers with ``on_bad_update="skip"``, or clean the batch that is named.
    """

    CODE = "NS103"
    SLUG = "non-finite-statistics"
    SEVERITY = Severity.ERROR
    BUFFERS_ONLY = True
    KEEPS = ("training",)
    SOURCES = ("pytorch/pytorch#1206",)
    SICK = (
        examples.Planted(partial(examples.healthy, examples.mlp, change=partial(_poison, value=float("nan"))), ["7"]),
        examples.Planted(partial(examples.healthy, examples.cnn, change=partial(_poison, value=1e35)), ["5"]),
        examples.Planted(partial(examples.healthy, examples.residual, change=_negative), ["stem.1"]),
    )
    WELL = (
        partial(examples.healthy, examples.mlp),
        partial(examples.healthy, examples.cnn),
        partial(examples.healthy, examples.residual),
    )
    NEAR = (
        examples.Near(_planted, found=1.01e30, quiet=0.99e30),
        examples.Near(_planted, found=-1e-6, quiet=0.0),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Look at the buffers, then at what a few batches do."""
        buffers = {path: dict(module.named_buffers(recurse=False)) for path, module in evidence.tracking.items()}
        others = evidence.buffers_elsewhere(moving=False)
        bad = _bad(buffers | others)
        if bad:
            yield self._of_buffers(bad, len(buffers) + len(others))
            return
        if not evidence.tracking:
            return
        seen = evidence.training
        if seen.batch_broken is not None or seen.broken is not None:
            # The step after a broken batch is broken too, by the weights: the first of both is the cause.
            where, of_layer = seen.broken or ("", seen.steps)
            of_batch = seen.batch_broken is not None and seen.batch_broken <= of_layer
            step = seen.batch_broken if of_batch else of_layer
            broken = (call for call in seen.calls if call.step == step and call.updated and not call.finite)
            places = list(dict.fromkeys(call.path for call in broken))
            if not places:
                return
            source = "its input batch is not finite" if of_batch else f"first in {where!r}"
            yield self.finding(
                f"training batch {step} makes the running statistics of {counted(len(places), 'norm')} non-finite: "
                f"{source}",
                places,
                quantity="norms whose statistics a batch made non-finite",
                measured=float(len(places)),
                bound=0.0,
                cost="every evaluation after this batch gives NaN",
                fix="clean that batch, or refuse such updates: normscope.layers.BatchNorm*(on_bad_update='skip')",
                fixable=False,
            )

    def examine_buffers(self, norms: Mapping[str, Mapping[str, Any]]) -> Iterable[Finding]:
        """Look at a checkpoint's buffers."""
        bad = _bad(norms)
        if bad:
            yield self._of_buffers(bad, len(norms), fixable=False)

    def _of_buffers(self, bad: Mapping[str, int], norms: int, *, fixable: bool = True) -> Finding:
        return self.finding(
            f"running statistics are not finite, negative or beyond {_HUGE:g} in "
            f"{counted(sum(bad.values()), 'channel')} of "
            f"{len(bad)} of {counted(norms, 'norm')}",
            list(bad),
            quantity="channels with impossible statistics",
            measured=float(sum(bad.values())),
            bound=0.0,
            cost="evaluation gives NaN or a constant there, whatever the input",
            fix="set them to those of the training data: normscope.surgery.recalibrate(model, loader)",
            fixable=fixable,
        )

    def repair(self, case: Case, finding: Finding) -> str:
        """Reset the norms of the finding and recalibrate them."""
        for module in modules_of(case, finding):
            held = statistics_of(module)
            assert held is not None
            held.mean.zero_()
            held.var.fill_(1)
        return f"reset and recalibrated {counted(recalibrate_places(case, finding), 'norm')} on the training data"


def _bad(norms: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    found = {}
    for path, tensors in norms.items():
        mean, variance = tensors.get("running_mean"), tensors.get("running_var")
        wrong = _impossible(mean) | _impossible(variance)
        if isinstance(variance, Tensor):
            wrong = wrong | (variance < 0)
        if isinstance(wrong, Tensor) and bool(wrong.any()):
            found[path] = int(wrong.sum())
    return found


def _impossible(values: Tensor | None) -> Any:
    return False if values is None else ~torch.isfinite(values) | (values.abs() > _HUGE)
