"""Code beside norms and noise that computes something else in evaluation, and evaluation that writes buffers."""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope.evidence import (
    ByMode,
    Case,
    Evidence,
    Finding,
    Severity,
    examples,
    has_learnt,
    modules_by_mode,
    settled_loss,
    written_in_evaluation,
)
from normscope.records.numbers import counted
from normscope.rules._rule import AbstractRule

_CAUSE = "other code that depends on the mode"
_TIMES, _LAG, _ERRORS = 1.2, 3.0, 3.0
_WRITTEN = 1e-4
_OBSERVERS = "torch.ao.quantization"


class _Own(nn.Module):
    """A batch norm of the user's own, whose running statistics nothing writes or evaluation writes too.

    Args:
        width: Number of channels.
        rate: Momentum in training.
        rate_in_evaluation: Momentum in evaluation.
    """

    mean: Tensor
    square: Tensor

    def __init__(self, width: int, *, rate: float = 0.1, rate_in_evaluation: float = 0.0) -> None:
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.ones(width))
        self.rates = rate_in_evaluation, rate

    def forward(self, x: Tensor) -> Tensor:
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        mean, variance = x.mean(axes), x.var(axes, correction=0)
        if rate := self.rates[self.training]:
            with torch.no_grad():
                self.mean.lerp_(mean.detach(), rate)
                self.square.lerp_(variance.detach(), rate)
        mean, variance = (mean, variance) if self.training else (self.mean, self.square)
        x = (x - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
        return x * self.gain.view(shape) + self.shift.view(shape)


class _Scaled(nn.Module):
    """Multiplies by another factor in evaluation, with a buffer of its own or without."""

    kept: Tensor | None

    def __init__(self, factor: float, *, buffer: bool = False, step: float = 0.0) -> None:
        super().__init__()
        self.factor, self.step = factor, step
        self.register_buffer("kept", torch.ones(()) if buffer else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is not None:
            x = x * self.kept
        if self.kept is not None and self.step:
            self.kept += self.step
        return x if self.training else x * self.factor


def _far_from_zero(model: nn.Module) -> None:
    """Give all own norms data that unmoved statistics do not fit."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
                module.weight.mul_(4.0)


def _unmoved(net: Any) -> examples.Planted:
    names = {"mlp": ["1", "4", "7"], "cnn": ["1", "5"], "sequence": ["norm1", "norm2"]}
    make = partial(examples.healthy, net, norm=partial(_Own, rate=0.0), change=_far_from_zero)
    return examples.Planted(make, names[net.__name__])


def _planted(factor: float, **options: Any) -> Case:
    """A mean square of 13 in training, and that times the square of the factor in evaluation."""
    loader = [examples.two_values(3.0, 2.0)] * 4
    weight = nn.Linear(12, 12, bias=False)
    nn.init.eye_(weight.weight)
    return examples.alone(_Scaled(factor, **options), loader, eval_loader=loader, then=[weight])


def _lagging(factor: float) -> Case:
    """A norm that follows its data, with a variance that is so many times theirs, and a loss that shows it.

    The network gives back what is normalized, but for a loss of 0.1; in evaluation its output is too large by the root.
    """
    norm = _Own(12)
    norm.mean.fill_(3.0)
    norm.square.fill_(4.0 * factor)
    weight = nn.Linear(12, 12, bias=False)
    nn.init.eye_(weight.weight)
    signs = torch.tensor([1.0, -1.0] * 6)

    def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
        return 0.1 + (model(batch) - (batch - 3.0) / 2.0).square().mean()

    loader = [3.0 + signs * examples.two_values(0.0, 2.0)] * 4
    return examples.alone(norm, loader, then=[weight], loss_fn=loss_fn, eval_loader=loader)


class ModeDependentCode(AbstractRule):
    r"""Beside norms and noise, code computes something else in evaluation, or evaluation changes the model.

    ## Finds
    The loss of training batches is taken with dropout and other noise off and batch norms held at statistics of the
    training data, once with all other code in train mode and once in eval mode. Found is a loss that is more than 1.2
    times as high in eval mode, by more than three standard errors over batches. Each module is called by itself with
    its own flag in train and in eval mode, and those whose outputs differ are named. Where they have buffers, 50 passes
    are made that change buffers and no weights: if more than half of the difference goes with them, running statistics
    lag behind weights that move, and the loss must be three times as high, in a network that has learnt. A loss that is
    lower in eval mode is no defect (auxiliary heads and penalties end there); where ``eval_loss_fn`` is given, there
    are two losses, and nothing to compare.

    Besides, a few batches are evaluated, and the loss of each is taken before and after. Found is a change of more than
    0.0001 of a loss that is gone when the buffers are put back which evaluation has written: an information where they
    are those of torch's observers.

    Calibrated over six seeds: planted defects found, 24 of 24; false alarms on 47 healthy set-ups under six seeds, 0 of
    282. With norms of the user's own in the place of torch's: in 120 healthy trainings at rates up to 0.4, 2, both at
    0.4 and told as statistics that lag; on 11 networks in the style of public code, 0, and 11 of 11 found where nothing
    writes the running statistics.

    ## Why it hurts
    The network is trained as one function and evaluated as another. A norm of the user's own whose running statistics
    are never written normalizes by 0 and 1; a scale that is left out in eval mode shifts every layer behind it. An
    evaluation that writes depends on what was evaluated before, in which order, and how often.

    ## Fix
    In the user's code: write what evaluation reads while training, and nothing while evaluating.
    """

    CODE = "NS130"
    SLUG = "mode-dependent-code"
    SEVERITY = Severity.WARNING
    NEEDS = ("evaluation",)
    SOURCES = ("pytorch/pytorch#4741: eval mode worse than train mode, with norms of one's own among the causes",)
    SICK = (
        _unmoved(examples.mlp),
        _unmoved(examples.cnn),
        _unmoved(examples.sequence),
        examples.Planted(
            partial(examples.healthy, examples.mlp, norm=partial(_Own, rate_in_evaluation=0.1)), ["1", "4", "7"]
        ),
    )
    WELL = (
        partial(examples.healthy, examples.mlp, norm=_Own),
        partial(examples.healthy, examples.cnn),
        partial(examples.healthy, examples.sequence, norm=_Own),
    )
    NEAR = (
        examples.Near(_planted, found=1.1, quiet=1.09),
        examples.Near(partial(_planted, buffer=True), found=1.1, quiet=1.09),
        examples.Near(_lagging, found=0.47, quiet=0.485),
        examples.Near(lambda step: _planted(1.0, buffer=True, step=step), found=1.3e-5, quiet=1.2e-5),
    )

    def examine(self, evidence: Evidence) -> Iterable[Finding]:
        """Compare the losses of both modes, and those before and after an evaluation."""
        yield from self._other_function(evidence)
        yield from self._other_values(evidence)

    def _other_function(self, evidence: Evidence) -> Iterable[Finding]:
        case = evidence.case
        if case.eval_loss_fn is not None:
            return
        gap = evidence.gap
        paid, trained = gap.of(_CAUSE), gap.train
        for share in gap.shares:
            if share.cause == _CAUSE:
                break
            trained += share.loss
        times = 1 + paid / max(abs(trained), 1e-12)
        if times <= _TIMES or not paid > _ERRORS * gap.error(_CAUSE) or not math.isfinite(times):
            return
        statistics = evidence.statistics if evidence.tracking else None
        found = modules_by_mode(case, statistics)
        settled, lags = trained + paid, False
        if any(one.buffers for one in found):
            settled = settled_loss(case, statistics, gap.batches)
            lags = settled - trained < paid / 2
        if lags and (times <= _LAG or not has_learnt(case)):
            return
        yield self.finding(
            f"with noise off and batch norms held fixed the training loss is {times:.3g} times as high in eval mode: "
            f"{_named(found, lags)}",
            [one.path for one in found] or [""],
            quantity="training loss with other code in eval mode over that with it in train mode",
            measured=times,
            bound=_LAG if lags else _TIMES,
            cost=f"the training loss is {trained:.4g} in train mode and {trained + paid:.4g} in eval mode"
            + (f"; after passes that write buffers alone it is {settled:.4g} there" if lags else ""),
            fix=_fix(found, lags),
        )

    def _other_values(self, evidence: Evidence) -> Iterable[Finding]:
        seen = written_in_evaluation(evidence.case, max(1, min(4, evidence.batches)))
        if seen.change <= _WRITTEN or not math.isfinite(seen.change):
            return
        places = list(seen.buffers)
        names = list(dict.fromkeys(name for several in seen.buffers.values() for name in several))
        observers = all(type(evidence.modules[path]).__module__.startswith(_OBSERVERS) for path in places)
        yield self.finding(
            f"evaluation writes {', '.join(names[:4])} of {counted(len(places), 'module')}, and with that the loss of "
            f"a batch changes by {seen.change:.2g} of it",
            places,
            quantity="change of the loss of a batch through evaluating others, over the loss",
            measured=seen.change,
            bound=_WRITTEN,
            cost=f"the loss of the same batch is {seen.before:.6g} before and {seen.after:.6g} after",
            fix="switch the observers off before evaluating: model.apply(torch.ao.quantization.disable_observer)"
            if observers
            else "write buffers in training only: if self.training: ...",
            severity=Severity.INFO if observers else None,
        )


def _named(found: Sequence[ByMode], lags: bool) -> str:
    if not found:
        return "the loss or code that no module holds depends on the mode"
    if lags:
        return f"running statistics of {counted(len(found), 'module')} are not those of the data"
    text = f"{counted(len(found), 'module computes', 'modules compute')} something else there"
    unwritten = list(dict.fromkeys(name for one in found for name in one.unwritten))
    return f"{text}, and no training pass writes {', '.join(unwritten[:4])}" if unwritten else text


def _fix(found: Sequence[ByMode], lags: bool) -> str:
    if lags:
        return "before evaluating, run batches of training in train mode without updates: buffers follow the weights"
    if any(one.unwritten for one in found):
        return "write in training what evaluation reads, or derive the norm from torch's BatchNorm"
    return "compute in eval mode what was trained; where another loss is meant, give Case(eval_loss_fn=...)"
