"""What a fix does to the losses of a set-up, and the way back from it."""

import math
from collections.abc import Sequence
from typing import Any

from normscope import evidence
from normscope._errors import NormscopeError
from normscope.evidence import Case, set_mode
from normscope.evidence.losses import losses
from normscope.modules.state import Snapshot
from normscope.records.numbers import counted
from normscope.report import LossNote

_BATCHES = 4
_ALONE = 0.05  # of a loss that is the mean over one batch, which shows no noise

_STUDENT = {2: 6.3, 3: 2.9, 4: 2.4}  # the 95th percentile of Student's t, by number of batches

Losses = dict[str, Sequence[float]]


class Before:
    """A set-up before a fix: its losses by batch, and everything that a fix may change.

    Args:
        case: The set-up.
        known: Its losses, where they were measured already.
    """

    def __init__(self, case: Case, known: Losses | None = None) -> None:
        self._case = case
        # A fix may put another loader in its place: the losses are those of the same batches.
        self._loaders = case.loader, case.eval_loader if case.eval_loader is not None else case.loader
        self._given = {name: getattr(case, name) for name in ("model", "averaged", "exported", "loader", "eval_loader")}
        models = [model for model in (case.model, case.averaged) if model is not None]
        models += evidence.outer_modules(case.model, evidence.reached_objects(case)).values()
        self._snapshot = Snapshot(*models, optimizers=[] if case.optimizer is None else [case.optimizer])
        self._losses = self.measured() if known is None else known

    def measured(self) -> Losses:
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
                    if evaluation:
                        set_mode(model, False)
                    loader = self._loaders[evaluation]
                    found[name] = losses(case, loader, _BATCHES, model=model, evaluation=evaluation)
            except NormscopeError:  # the check itself says what cannot be had
                continue
        return found

    def effect(self, after: Losses) -> tuple[tuple[LossNote, ...], str]:
        """Return each mean loss before and after, and how the loss of evaluation rose by more than its noise, if so."""
        notes, worse = [], ""
        for name, now in after.items():
            then = self._losses.get(name)
            if then is None:
                continue
            notes.append(LossNote(name, _mean(then), _mean(now)))
            rise, noise = _mean(now) - _mean(then), _noise(then)
            if name != "training" and math.isfinite(_mean(then)) and not rise <= noise:
                worse = (
                    f"the loss of {name} rose from {_mean(then):.4g} to {_mean(now):.4g}, by more than its noise over "
                    f"{counted(len(then), 'batch', 'batches')} ({noise:.2g})"
                )
        return tuple(notes), worse

    def restore(self) -> None:
        """Take back what was done since."""
        for name, value in self._given.items():
            setattr(self._case, name, value)
        self._snapshot.restore()


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if all(map(math.isfinite, values)) else math.nan


def _noise(values: Sequence[Any]) -> float:
    """Return by how much a mean over batches may rise by chance, or a share of it where there is one batch."""
    mean = _mean(values)
    if len(values) < 2:
        return _ALONE * abs(mean)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    return max(_STUDENT[len(values)] * error, 1e-6 * abs(mean))  # losses of equal batches differ by rounding alone
