"""Why is eval worse than train? The gap between two losses, taken apart into steps that add up to it."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch.nn import Module

from normscope.evidence.batchings import mixed_anew
from normscope.evidence.case import Case
from normscope.evidence.influence import measure_influence
from normscope.evidence.losses import losses
from normscope.evidence.noise import Noise, noisy_modules, quiet
from normscope.evidence.pooling import Statistics, pooled, put_statistics, recalibrated
from normscope.evidence.sandbox import batches, sandbox
from normscope.modules.call import set_mode
from normscope.modules.rng import RngState
from normscope.modules.sites import tracking
from normscope.modules.state import traceless
from normscope.surgery import is_frozen

_NOISE, _BATCH, _MODE = "dropout and other noise", "batch statistics", "other code that depends on the mode"
_DATA, _DOMAIN, _RUNNING = "other data", "domain shift", "running statistics"
_BESIDE, _AVERAGED = "evaluation depends on the batch", "averaged weights"
_CAUSES = {
    _NOISE: "they act in training only: no defect",
    _BATCH: "training normalizes each batch by itself: large where batches are small or sorted",
    _MODE: "beside noise and batch norms, the model or the loss computes something else in eval mode",
    _DATA: "generalisation: the same network on data it was not trained on",
    _DOMAIN: "statistics of the training data do not fit those of evaluation",
    _RUNNING: "running statistics are not those of the data: recalibrate them",
    _BESIDE: "in eval mode the output for a sample changes with the samples beside it: against mixed batches",
    _AVERAGED: "evaluation uses averaged weights with statistics of their own",
}
_RUNNING_OF_NEW = "running statistics are those of a new layer: the network has not been trained"
_RUNNING_HELP = "running statistics are not those of the data, and evaluation is the better for it"
_NOISE_OF_OWN = "{} draw random numbers in code of their own: what else they do by mode is in this share too"
_DATA_AS_BATCHED = "generalisation, and batches of evaluation, on which outputs depend: their samples are not mixed"
_UNCHANGED = "this changes nothing here"
_UNCLEAR = "within its noise over batches: no cause is shown"
_ROUNDING = 1e-5  # of a loss: by so much other kernels, as of torch's fast path in eval mode, may change it
_ERRORS = 2.0  # standard errors up to which a share may be chance

_MORE = 4

Levels = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Share:
    """One step from the loss of training to that of evaluation.

    Attributes:
        cause: What changes in this step.
        loss: By how much the loss rises through it; negative where it falls.
        explanation: What it means, in a sentence; no cause where the loss is within two errors, or rounding, of 0.
        error: Standard error of ``loss`` over batches, where both losses are of the same batches; else 0.
    """

    cause: str
    loss: float
    explanation: str
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class Gap:
    """The loss in training, the loss in evaluation, and the steps from one to the other: they add up to the gap.

    Attributes:
        train: Loss of training batches in the modes of training.
        eval: Loss of evaluation batches in eval mode.
        shares: The steps, in the order in which they are taken.
        batches: How many batches each loss is the mean over; up to four times as many of evaluation, where that depends
            on how data are batched.
    """

    train: float
    eval: float
    shares: tuple[Share, ...]
    batches: int

    @property
    def total(self) -> float:
        """Return how much higher the loss is in evaluation."""
        return self.eval - self.train

    @property
    def not_finite(self) -> str:
        """Say which loss is not finite, and from which step on; nothing if all are finite."""
        if not math.isfinite(self.train):
            return f"the loss of training is not finite ({self.train}): there is no gap to take apart"
        first = next((share.cause for share in self.shares if not math.isfinite(share.loss)), "")
        if not first:
            return ""
        what = "the loss of evaluation" if not math.isfinite(self.eval) else "a loss between training and evaluation"
        value = "" if math.isfinite(self.eval) else f" ({self.eval})"
        return f'{what} is not finite{value}, that of training is ({self.train:.4g}): it is lost in the step "{first}"'

    def of(self, cause: str) -> float:
        """Return a step's share; 0 if it was not taken."""
        return next((share.loss for share in self.shares if share.cause == cause), 0.0)

    def error(self, cause: str) -> float:
        """Return the standard error of a step's share over batches; 0 if it is not known."""
        return next((share.error for share in self.shares if share.cause == cause), 0.0)


def measure_gap(
    case: Case,
    count: int,
    statistics: Statistics | None = None,
    *,
    untrained: bool = False,
    only: Collection[str] | None = None,
) -> Gap:
    """Take the gap between training and evaluation apart.

    From the loss of training batches as they train, one thing is changed after another: dropout and other noise are
    switched off; norms normalize by statistics of the training data instead of the batch's; all other code is in eval
    mode too, and the loss is that of evaluation; data are those of evaluation, at first with statistics of their own;
    then with those of the training data; then with the running statistics; then batches are those of evaluation, where
    what a sample gives depends on the others, and before they were mixed and as large as those of training; then the
    weights are the averaged ones. The steps add up to the gap. The decomposition depends on the order: each share is
    the increase on top of the steps before it. Steps that change nothing are left out, but for those of noise and
    statistics.

    Args:
        case: With ``eval_loader``; without, or where it is the loader itself, the training data are evaluated and no
            data change.
        count: Batches a loss.
        statistics: Pooled statistics of the training data, where they are known; else they are taken from ``count``
            batches.
        untrained: Whether the network is known to be as it was made: it is told so, and not to recalibrate.
        only: The norms that normalize by the batch in training: the others do by their running statistics all along.
            Left out, those in train mode that are not frozen.

    Raises:
        UsageError: The loader or the loss raises.
    """
    with sandbox(case):
        noise = noisy_modules(case)
        data = _Data(case, count, _by_batch(case.model) if only is None else only)
        if noise.own:
            kinds = ", ".join(sorted({type(module).__name__ for module in noise.own})[:4])
            data.notes[_NOISE] = f"{_CAUSES[_NOISE]}. {_NOISE_OF_OWN.format(kinds)}"
        if untrained:
            data.notes[_RUNNING] = _RUNNING_OF_NEW
        # Passes in train mode move the running statistics, whose own share is measured last: they are put back.
        with traceless(case.model, streams=False):
            train, silent = _losses_of_training(data, statistics, noise)
        levels: Levels = {_NOISE: silent}
        with traceless(case.model, streams=False), quiet(noise):
            levels |= _losses_by_mode(data, statistics)
        set_mode(case.model, False)
        levels |= _losses_by_data(data, statistics)
        last = list(levels.values())[-1]
        if case.averaged is not None:
            set_mode(case.averaged, False)
            levels[_AVERAGED] = last = data.evaluated(model=case.averaged)
    before = [train, *levels.values()]
    pairs = zip(levels.items(), before, strict=False)
    shares = tuple(_share(cause, now, then, data.notes.get(cause, "")) for (cause, now), then in pairs)
    return Gap(_mean(train), _mean(last), shares, count)


class _Data:
    """The batches on which all losses are taken: the same for each, also where a loader shuffles.

    Attributes:
        only: The norms that normalize by the batch in training.
        other: Whether the data of evaluation are not those of training.
        notes: By cause what its share means here, where that is more than its cause says.
    """

    def __init__(self, case: Case, count: int, only: Collection[str]) -> None:
        self.case, self.count, self.only = case, count, only
        self.other = case.eval_loader is not None and case.eval_loader is not case.loader
        self.training = list(batches(case.loader, count))
        self.evaluation = self.training
        self.notes: dict[str, str] = {}
        self.take_evaluation(count)

    def take_evaluation(self, count: int) -> None:
        """Evaluate so many batches, where there are data for that."""
        if self.other:
            self.evaluation = list(batches(self.case.eval_loader, count, what="eval_loader"))

    def trained(self, *, evaluation: bool = False, first: bool = False) -> list[float]:
        """Return the losses of the training data, or that of their first batch."""
        chosen = self.training[:1] if first else self.training
        with traceless(self.case.model, streams=False):
            return losses(self.case, chosen, self.count, evaluation=evaluation)

    def evaluated(self, mixed: list[Any] | None = None, *, model: Module | None = None) -> list[float]:
        """Return the losses of the data of evaluation, as they are or mixed; what they write is taken back."""
        chosen = self.evaluation if mixed is None else mixed
        what = "eval_loader" if self.other else "loader"
        with traceless(model or self.case.model, streams=False):
            return losses(self.case, chosen, len(chosen), model=model, evaluation=True, what=what)


def _share(cause: str, now: list[float], then: list[float], note: str) -> Share:
    loss, error, explanation = _mean(now) - _mean(then), 0.0, note or _CAUSES[cause]
    if cause not in (_DATA, _BESIDE) and len(now) == len(then) > 1 and math.isfinite(loss):
        rises = [b - a for a, b in zip(then, now, strict=True)]
        error = math.sqrt(math.fsum((rise - loss) ** 2 for rise in rises) / (len(rises) - 1) / len(rises))
    if cause == _RUNNING and loss < 0 and not note:
        explanation = _RUNNING_HELP
    if math.isfinite(loss) and abs(loss) <= _ROUNDING * abs(_mean(then)):
        explanation = _UNCHANGED
    elif math.isfinite(loss) and abs(loss) <= _ERRORS * error:
        explanation = _UNCLEAR
    return Share(cause, loss, explanation, error)


def _losses_of_training(data: _Data, statistics: Statistics | None, noise: Noise) -> tuple[list[float], list[float]]:
    """Return the losses of training with its noise and without."""
    streams = RngState(data.case.model)
    known = list(statistics.losses[: data.count]) if statistics is not None else []
    noisy = data.trained(first=True)
    streams.restore()
    if noisy != known[:1]:
        noisy = known = data.trained()
        streams.restore()
    with quiet(noise):
        # If the first batch gives the same bits with noise and without, from the same state of the streams, then there
        # is none, and the loss is known already: from the pass that took the statistics, or from the one just made.
        silent = known is not noisy or not noise.present or data.trained(first=True) == noisy[:1]
        return known, known if silent else data.trained()


def _losses_by_mode(data: _Data, statistics: Statistics | None) -> Levels:
    """Return the losses of training data by their statistics, and then with all code in eval mode."""
    case, levels = data.case, Levels()
    if tracking(case.model):
        _statistics_of_training(data, statistics)
        for module in tracking(case.model).values():
            module.training = False
        levels[_BATCH] = data.trained()
    if case.eval_loss_fn is None:
        (first,) = levels.get(_BATCH, [])[:1] or data.trained(first=True)
        set_mode(case.model, False)
        (other,) = data.trained(first=True, evaluation=True)
        if abs(other - first) <= _ROUNDING * abs(first):
            return levels
    set_mode(case.model, False)
    return levels | {_MODE: data.trained(evaluation=True)}


def _losses_by_data(data: _Data, statistics: Statistics | None) -> Levels:
    """Return the losses of evaluation by its own statistics, by those of training, by the running ones, as batched."""
    case, levels = data.case, Levels()
    mixed = None
    if data.other and (seen := measure_influence(case, data.evaluation[0])).found:
        if seen.of_samples:
            data.take_evaluation(_MORE * data.count)  # a sorted set shows what is in it only from afar
            mixed = mixed_anew(data.evaluation, data.training[0])
        if mixed is None:
            data.notes[_DATA] = _DATA_AS_BATCHED
    if tracking(case.model) and data.other:
        with traceless(case.model, streams=False):
            chosen = mixed or data.evaluation
            only = [path for path in tracking(case.model) if path in data.only]
            if only:
                recalibrated(case, chosen, len(chosen), call=case.eval_loss_fn, dropout=False, frozen=True, only=only)
            levels[_DATA] = data.evaluated(mixed)
        with traceless(case.model, streams=False):
            _statistics_of_training(data, statistics)
            levels[_DOMAIN] = data.evaluated(mixed)
    if tracking(case.model) or data.other:
        levels[_RUNNING if tracking(case.model) else _DATA] = data.evaluated(mixed)
    return levels if mixed is None else levels | {_BESIDE: data.evaluated()}


def _statistics_of_training(data: _Data, statistics: Statistics | None) -> None:
    if data.only:
        known = pooled(data.case, data.count, only=data.only) if statistics is None else statistics
        put_statistics(data.case.model, known, only=data.only)


def _by_batch(model: Module) -> list[str]:
    return [path for path, module in tracking(model).items() if module.training and not is_frozen(module)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
