"""A training set-up at another learning rate."""

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from normscope._errors import UsageError
from normscope.evidence import Case, reached_objects

_OF_GROUPS = ("lr", "initial_lr", "max_lr", "min_lr", "base_lr")
_OF_SCHEDULERS = ("base_lrs", "min_lrs", "max_lrs")


def scale_rates(case: Case, factor: float) -> None:
    """Multiply the learning rates of a set-up, those that its schedulers work from too, in place.

    Args:
        case: The set-up.
        factor: What they are multiplied by.

    Raises:
        UsageError: No optimizer of the set-up holds a parameter of the model.
    """
    objects = [each for _, each in reached_objects(case)]
    own = {id(parameter) for parameter in case.model.parameters()}
    optimizers = {id(each): each for each in (case.optimizer, *objects) if _updates(each, own)}
    if not optimizers:
        raise UsageError("--rates: the set-up has no optimizer that updates the model: give it to the Case")
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            for key in _OF_GROUPS:
                if key in group:
                    group[key] = group[key] * factor
    for scheduler in {id(each): each for each in objects if isinstance(each, LRScheduler)}.values():
        if id(getattr(scheduler, "optimizer", None)) in optimizers:
            for key in _OF_SCHEDULERS:
                if isinstance(rates := getattr(scheduler, key, None), list):
                    setattr(scheduler, key, [rate * factor for rate in rates])


def _updates(each: Any, parameters: set[int]) -> bool:
    return isinstance(each, Optimizer) and any(
        id(parameter) in parameters for group in each.param_groups for parameter in group["params"]
    )
