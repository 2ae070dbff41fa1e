"""What a fix does to the losses of a set-up, and the way back from it."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from normscope import evidence
from normscope._errors import NormscopeError
from normscope.evidence import Case, set_mode
from normscope.evidence.losses import losses
from normscope.evidence.moments import spread_out
from normscope.evidence.sandbox import streams_of_loaders
from normscope.modules.rng import RngState
from normscope.modules.state import Snapshot
from normscope.records.numbers import counted
from normscope.report import LossNote

_BATCHES = 4
_ALONE = 0.05  # of a loss that is the mean over one batch, which shows no noise

_STUDENT = {2: 6.3, 3: 2.9, 4: 2.4}  # the 95th percentile of Student's t, by number of batches

Losses = dict[str, Sequence[float]]


class _Some:
    """The batches of a loader that have these numbers: the first of data that lie in order are of one kind."""

    def __init__(self, loader: Iterable[Any], numbers: Sequence[int]) -> None:
        self._loader, self._numbers = loader, numbers

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self._loader):
            if number in self._numbers:
                yield batch
            if number >= self._numbers[-1]:
                return


class Measure:
    """Takes the losses of a set-up, each time on the same batches and from the same state of the random streams.

    The batches are from all along the loaders. A fix may put another loader in its place, and draw from the stream of a
    loader.

    Args:
        case: The set-up.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._loaders = case.loader, case.eval_loader if case.eval_loader is not None else case.loader
        self._spread = [spread_out(loader, _BATCHES) for loader in self._loaders]
        self._streams = RngState(generators=streams_of_loaders(case))

    def losses(self) -> Losses:
        """Return the losses of some batches in training and in evaluation; without those that cannot be had."""
        case = self._case
        found: Losses = {}
        models = {"training": case.model, "evaluation": case.model, "evaluation of the averaged weights": case.averaged}
        for name, model in models.items():
            if model is None:
                continue
            evaluation = name != "training"
            try:
                with evidence.sandbox(case):
                    self._streams.restore()
                    if evaluation:
                        set_mode(model, False)
                    some = _Some(self._loaders[evaluation], self._spread[evaluation])
                    what = "eval_loader" if evaluation and case.eval_loader is not None else "loader"
                    found[name] = losses(case, some, _BATCHES, model=model, evaluation=evaluation, what=what)
            except NormscopeError:  # the check itself says what cannot be had
                continue
        return found


class Before:
    """A set-up before a fix: everything that a fix may change.

    Args:
        case: The set-up.
    """

    def __init__(self, case: Case) -> None:
        self._case = case
        self._given = {name: getattr(case, name) for name in ("model", "averaged", "exported", "loader", "eval_loader")}
        models = [model for model in (case.model, case.averaged) if model is not None]
        models += evidence.outer_modules(case.model, evidence.reached_objects(case)).values()
        optimizers = [] if case.optimizer is None else [case.optimizer]
        self._snapshot = Snapshot(*models, optimizers=optimizers, generators=streams_of_loaders(case))

    def restore(self) -> None:
        """Take back what was done since."""
        for name, value in self._given.items():
            setattr(self._case, name, value)
        self._snapshot.restore()


def told(before: Losses, after: Losses) -> tuple[LossNote, ...]:
    """Return each mean loss before and after."""
    return tuple(LossNote(name, _mean(then), _mean(after[name])) for name, then in before.items() if name in after)


def lost(before: Losses, after: Losses) -> str:
    """Say which loss can no longer be taken, or is no longer finite; nothing if none."""
    for name, then in before.items():
        if name not in after:
            return f"the loss of {name} can no longer be taken"
        if math.isfinite(_mean(then)) and not math.isfinite(_mean(after[name])):
            return f"the loss of {name} is no longer finite"
    return ""


def risen(before: Losses, after: Losses) -> str:
    """Say which loss of evaluation is higher by more than its noise over batches; nothing if none."""
    for name, then in before.items():
        if name == "training" or name not in after:
            continue
        was, now, noise = _mean(then), _mean(after[name]), _noise(then)
        if now - was > noise:
            over = counted(len(then), "batch", "batches")
            return (
                f"the loss of {name} rose from {was:.4g} to {now:.4g}, by more than its noise over {over} ({noise:.2g})"
            )
    return ""


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def _noise(values: Sequence[Any]) -> float:
    """Return by how much a mean over batches may rise by chance, or a share of it where there is one batch."""
    mean = _mean(values)
    if len(values) < 2:
        return _ALONE * abs(mean)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    return max(_STUDENT[len(values)] * error, 1e-6 * abs(mean))  # losses of equal batches differ by rounding alone
