"""Why is eval worse than train? The gap between two losses, taken apart into steps that add up to it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Module

from normscope._errors import NormscopeError
from normscope.evidence.case import Case
from normscope.evidence.losses import losses, mean_loss
from normscope.evidence.noise import noisy_modules, quiet, quiet_call
from normscope.evidence.sandbox import sandbox
from normscope.modules.call import set_mode
from normscope.modules.rng import RngState
from normscope.modules.sites import is_known_norm, tracking
from normscope.modules.state import traceless
from normscope.surgery import recalibrate
from normscope.usercode import users_code

_NOISE, _BATCH, _MODE = "dropout and other noise", "batch statistics", "other code that depends on the mode"
_DATA, _DOMAIN, _RUNNING, _AVERAGED = "other data", "domain shift", "running statistics", "averaged weights"
_CAUSES = {
    _NOISE: "they act in training only: no defect",
    _BATCH: "training normalizes each batch by itself: large where batches are small or sorted",
    _MODE: "beside noise and batch norms, the model or the loss computes something else in eval mode",
    _DATA: "generalisation: the same network on data it was not trained on",
    _DOMAIN: "statistics of the training data do not fit those of evaluation",
    _RUNNING: "running statistics are not those of the data: recalibrate them",
    _AVERAGED: "evaluation uses averaged weights with statistics of their own",
}

_ROUNDING = 1e-5  # of a loss: by so much other kernels, as of torch's fast path in eval mode, may change it


@dataclass(frozen=True, slots=True)
class Share:
    """One step from the loss of training to that of evaluation.

    Attributes:
        cause: What changes in this step.
        loss: By how much the loss rises through it; negative where it falls.
        explanation: What it means, in a sentence.
    """

    cause: str
    loss: float
    explanation: str


@dataclass(frozen=True, slots=True)
class Gap:
    """The loss in training, the loss in evaluation, and the steps from one to the other: they add up to the gap.

    Attributes:
        train: Loss of training batches in the modes of training.
        eval: Loss of evaluation batches in eval mode.
        shares: The steps, in the order in which they are taken.
        batches: How many batches each loss is the mean over.
    """

    train: float
    eval: float
    shares: tuple[Share, ...]
    batches: int

    @property
    def total(self) -> float:
        """Return how much higher the loss is in evaluation."""
        return self.eval - self.train

    def of(self, cause: str) -> float:
        """Return a step's share; 0 if it was not taken."""
        return next((share.loss for share in self.shares if share.cause == cause), 0.0)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Pooled statistics of the norms over training batches, and the state of the buffers beside them.

    Attributes:
        mean: By qualified name the mean of each channel.
        variance: Its unbiased variance.
        shift: Largest distance of the running mean from it, in standard deviations, by channel.
        ratio: Running variance over it, by channel.
        losses: Losses of the batches in that pass: noise off, each norm normalizing by the batch.
    """

    mean: Mapping[str, torch.Tensor]
    variance: Mapping[str, torch.Tensor]
    shift: Mapping[str, torch.Tensor]
    ratio: Mapping[str, torch.Tensor]
    losses: Sequence[float] = ()


def pooled(case: Case, count: int, *, dropout: bool = False) -> Statistics:
    """Pool the statistics of what each tracking norm is given, over training batches with the others as in training.

    Raises:
        UsageError: The loader or the loss raises.
    """
    found: dict[str, list[torch.Tensor]] = {}
    noted: list[float] = []
    call = case.loss_fn if dropout else quiet_call(case, noisy_modules(case))

    def noting(model: Any, batch: Any) -> Any:
        loss = call(model, batch)
        noted.append(float(loss.detach() if isinstance(loss, torch.Tensor) else loss))
        return loss

    with sandbox(case):
        before = {
            path: (module.running_mean.clone(), module.running_var.clone())
            for path, module in tracking(case.model).items()
        }
        _recalibrate(case, case.loader, count, call=noting, dropout=dropout, frozen=True)
        for path, module in tracking(case.model).items():
            mean, variance = module.running_mean.double().clone(), module.running_var.double().clone()
            old_mean, old_variance = (part.double() for part in before[path])
            scale = (variance + module.eps).sqrt()
            found[path] = [mean, variance, (mean - old_mean) / scale, old_variance / variance.clamp(min=1e-30)]
    parts = [{path: values[index] for path, values in found.items()} for index in range(4)]
    return Statistics(parts[0], parts[1], parts[2], parts[3], noted)


def measure_gap(case: Case, count: int, statistics: Statistics | None = None) -> Gap:
    """Take the gap between training and evaluation apart.

    From the loss of training batches as they train, one thing is changed after another: dropout and other noise are
    switched off; norms normalize by statistics of the training data instead of the batch's; all other code is in eval
    mode too, and the loss is that of evaluation; data are those of evaluation, at first with statistics of their own;
    then with those of the training data; then with the running statistics; then the weights are the averaged ones. The
    steps add up to the gap. The decomposition depends on the order: each share is the increase on top of the steps
    before it.

    Args:
        case: With ``eval_loader``; without, the training data are evaluated and no data change.
        count: Batches a loss.
        statistics: Pooled statistics of the training data, where they are known; else they are taken from ``count``
            batches.

    Raises:
        UsageError: The loader or the loss raises.
    """
    with sandbox(case):
        noise = noisy_modules(case)
        # Passes in train mode move the running statistics, whose own share is measured last: they are put back.
        with traceless(case.model, streams=False):
            train, silent = _losses_of_training(case, count, statistics, noise)
        levels = {_NOISE: silent}
        with traceless(case.model, streams=False), quiet(noise):
            levels |= _losses_by_mode(case, count, statistics)
        set_mode(case.model, False)
        if tracking(case.model):
            levels |= _losses_by_data(case, count, statistics)
        elif case.eval_loader is not None:
            levels[_DATA] = _evaluated(case, count)
        last = _evaluated(case, count)
        if tracking(case.model):
            levels[_RUNNING] = last
        if case.averaged is not None:
            set_mode(case.averaged, False)
            levels[_AVERAGED] = last = _evaluated(case, count, model=case.averaged)
    before = [train, *levels.values()]
    shares = (
        Share(cause, loss - at, _CAUSES[cause]) for (cause, loss), at in zip(levels.items(), before, strict=False)
    )
    return Gap(train, last, tuple(shares), count)


def _losses_of_training(
    case: Case, count: int, statistics: Statistics | None, noise: list[Module]
) -> tuple[float, float]:
    """Return the loss of training with its noise and without."""
    streams = RngState(case.model)
    known = list(statistics.losses[:count]) if statistics is not None else []
    noisy = losses(case, case.loader, 1)
    streams.restore()
    if noisy != known[:1]:
        noisy = known = losses(case, case.loader, count)
        streams.restore()
    train = sum(known) / len(known)
    with quiet(noise):
        # If the first batch gives the same bits with noise and without, from the same state of the streams, then there
        # is none, and the loss is known already: from the pass that took the statistics, or from the one just made.
        silent = known is not noisy or not noise or losses(case, case.loader, 1) == noisy[:1]
        return train, train if silent else mean_loss(case, case.loader, count)


def _losses_by_mode(case: Case, count: int, statistics: Statistics | None) -> dict[str, float]:
    """Return the losses of training data by their statistics, and then with all code in eval mode."""
    levels = {}
    if tracking(case.model):
        _statistics_of_training(case, count, statistics)
        for module in case.model.modules():
            module.training = module.training and not is_known_norm(module)
        levels[_BATCH] = mean_loss(case, case.loader, count)
    if case.eval_loss_fn is None:
        (first,) = losses(case, case.loader, 1)
        set_mode(case.model, False)
        (other,) = losses(case, case.loader, 1, evaluation=True)
        if abs(other - first) <= _ROUNDING * abs(first):
            return levels
    set_mode(case.model, False)
    return levels | {_MODE: mean_loss(case, case.loader, count, evaluation=True)}


def _losses_by_data(case: Case, count: int, statistics: Statistics | None) -> dict[str, float]:
    """Return the losses of the data of evaluation by statistics of their own, and by those of the training data."""
    if case.eval_loader is None:
        return {}
    levels = {}
    with traceless(case.model, streams=False):
        _recalibrate(case, case.eval_loader, count, call=case.eval_loss_fn, dropout=False, frozen=True)
        levels[_DATA] = _evaluated(case, count)
    with traceless(case.model, streams=False):
        _statistics_of_training(case, count, statistics)
        levels[_DOMAIN] = _evaluated(case, count)
    return levels


def _statistics_of_training(case: Case, count: int, statistics: Statistics | None) -> None:
    if statistics is None:
        statistics = pooled(case, count)
    _put(case.model, statistics)


def _evaluated(case: Case, count: int, *, model: Module | None = None) -> float:
    loader = case.eval_loader if case.eval_loader is not None else case.loader
    return mean_loss(case, loader, count, model=model, evaluation=True)


@torch.no_grad()
def _put(model: Module, statistics: Statistics) -> None:
    for path, module in tracking(model).items():
        module.running_mean.copy_(statistics.mean[path])
        module.running_var.copy_(statistics.variance[path])


def _recalibrate(
    case: Case, loader: Iterable[Any], count: int, *, call: Callable[..., Any] | None = None, **options: Any
) -> None:
    with users_code("measuring statistics over the loader"):
        try:
            recalibrate(case.model, loader, call or case.loss_fn, num_batches=count, **options)
        except NormscopeError as error:
            if "no norm was called" not in str(error) and "two values" not in str(error):
                raise
