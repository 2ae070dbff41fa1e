"""A training set-up at another learning rate."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR

from normscope._errors import UsageError
from normscope.evidence import Case, reached_objects

_OF_GROUPS = ("lr", "initial_lr", "max_lr", "min_lr", "base_lr", "swa_lr")
# Learning rates that a scheduler works from: a list of one a group, or a single one.
_OF_SCHEDULERS = ("base_lrs", "min_lrs", "max_lrs", "eta_min")


def scale_rates(case: Case, factor: float) -> None:
    """Multiply the learning rates of a set-up, those that its schedulers work from too, in place.

    Args:
        case: The set-up.
        factor: What they are multiplied by.

    Raises:
        UsageError: No optimizer of the set-up holds a parameter of the model.
    """
    objects = [each for _, each in reached_objects(case)]
    optimizers = {id(each): each for each in _optimizers(case, objects)}
    if not optimizers:
        raise UsageError("--rates: the set-up has no optimizer that updates the model: give it to the Case")
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            for key in _OF_GROUPS:
                if key in group:
                    group[key] = group[key] * factor
    schedulers = [part for each in objects if isinstance(each, LRScheduler) for part in _parts(each)]
    for scheduler in {id(each): each for each in schedulers}.values():
        if id(getattr(scheduler, "optimizer", None)) in optimizers:
            for key in _OF_SCHEDULERS:
                if isinstance(rates := getattr(scheduler, key, None), list):
                    setattr(scheduler, key, [rate * factor for rate in rates])
                elif isinstance(rates, int | float):
                    setattr(scheduler, key, rates * factor)


def schedules_that_end(case: Case) -> list[OneCycleLR]:
    """Return the schedules of a set-up that raise when they are stepped beyond their end; others go on for ever."""
    schedulers = [each for _, each in reached_objects(case) if isinstance(each, LRScheduler)]
    found = {id(part): part for each in schedulers for part in _parts(each) if isinstance(part, OneCycleLR)}
    return list(found.values())


def ended(case: Case) -> OneCycleLR | None:
    """Return a schedule of a set-up that was stepped beyond its end, and has raised; None if there is none."""
    return next((each for each in schedules_that_end(case) if each.last_epoch > each.total_steps), None)


def _parts(scheduler: LRScheduler) -> Iterator[LRScheduler]:
    """Yield a scheduler and those that it is made of."""
    yield scheduler
    for part in getattr(scheduler, "_schedulers", ()):
        yield from _parts(part)


def optimizer_of(case: Case) -> Optimizer | None:
    """Return the optimizer of a set-up: the one that it was given, or the only one by which its step updates the model.

    Args:
        case: The set-up.
    """
    if case.optimizer is not None or case.step is None:
        return case.optimizer
    found = {id(each): each for each in _optimizers(case, [each for _, each in reached_objects(case)])}
    return next(iter(found.values())) if len(found) == 1 else None


def _optimizers(case: Case, objects: Iterable[Any]) -> list[Any]:
    own = {id(parameter) for parameter in case.model.parameters()}
    return [each for each in (case.optimizer, *objects) if _updates(each, own)]


def _updates(each: Any, parameters: set[int]) -> bool:
    return isinstance(each, Optimizer) and any(
        id(parameter) in parameters for group in each.param_groups for parameter in group["params"]
    )
