"""What it costs that kinds of data share a norm's running statistics: losses with statistics of each kind instead."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from normscope.evidence.case import Case
from normscope.evidence.moments import Moments
from normscope.evidence.places import Place, Places
from normscope.evidence.sandbox import batches, sandbox
from normscope.modules.call import set_mode
from normscope.usercode import users_code

#: Names the kind of a call by the number of its batch and its place.
Kind = Callable[[int, Place], Any]

_ERRORS, _MANY = 3.0, 8


@dataclass(frozen=True, slots=True)
class Cost:
    """Losses in eval mode, of the same batches.

    Attributes:
        shared: Losses by batch with pooled statistics that all kinds share.
        own: Losses with statistics of each kind.
    """

    shared: Sequence[float]
    own: Sequence[float]

    @property
    def ratio(self) -> float:
        """One and the mean rise of the loss by sharing, of the size of the loss: some losses are negative."""
        return 1 + self._rise / max(abs(_mean(self.own)), 1e-12)

    def exceeds(self, ratio: float) -> bool:
        """Whether the loss rises by more than this, and not by chance.

        That is by more than three standard errors over batches, or for each of eight or more: long sequences may pay
        many times what short ones do.
        """
        rises = [shared - own for shared, own in zip(self.shared, self.own, strict=True)]
        squares = math.fsum((rise - self._rise) ** 2 for rise in rises)
        error = math.sqrt(squares / max(1, len(rises) - 1) / len(rises))
        everywhere = len(rises) >= _MANY and min(rises) > 0
        return self.ratio > ratio and (everywhere or self._rise > _ERRORS * error)

    def words(self, whose: str) -> str:
        """Return both losses in words."""
        return f"the loss in eval mode is {_mean(self.shared):.4g}; with statistics of {whose} {_mean(self.own):.4g}"

    @property
    def _rise(self) -> float:
        return _mean(self.shared) - _mean(self.own)


def cost_of_sharing(
    case: Case,
    norms: Mapping[str, Module],
    moments: Mapping[str, Sequence[Moments]],
    kind: Kind,
    loader: Any,
    numbers: Sequence[int],
) -> Cost:
    """Evaluate with shared statistics and with those of each kind, both from training batches, in some norms.

    Args:
        case: The set-up; left as it was.
        norms: The norms, by name. A call of a kind that training did not show uses what the call before it used.
        moments: By norm, what it is given in training.
        kind: Names the kind of a call.
        loader: Gives the batches.
        numbers: Numbers of its batches that are evaluated, in order.

    Raises:
        UsageError: The loader or the loss raises.
    """
    evaluate = partial(_losses, case, norms, loader=loader, numbers=numbers)
    shared = {path: {None: _pool(moments[path])} for path in norms}
    own: dict[str, dict[Any, tuple[Tensor, Tensor]]] = {}
    for path in norms:
        groups: dict[Any, list[Moments]] = {}
        for call in moments[path]:
            groups.setdefault(kind(call.batch, call.place), []).append(call)
        own[path] = {key: _pool(calls) for key, calls in groups.items()}
    return Cost(evaluate(shared, lambda _batch, _place: None), evaluate(own, kind))


def _losses(
    case: Case,
    norms: Mapping[str, Any],
    statistics: Mapping[str, Mapping[Any, tuple[Tensor, Tensor]]],
    kind: Kind,
    *,
    loader: Any,
    numbers: Sequence[int],
) -> list[float]:
    found, places, now = [], Places(), [0]

    @torch.no_grad()
    def put(path: str, module: Any, _args: Any) -> None:
        known = statistics[path].get(kind(now[0], places.next(path)))
        if known is not None:
            module.running_mean.copy_(known[0])
            module.running_var.copy_(known[1])

    with sandbox(case), ExitStack() as hooks:
        set_mode(case.model, False)
        hooks.callback(case.model.register_forward_pre_hook(places.begin_pass).remove)
        for path, module in norms.items():
            hooks.callback(module.register_forward_pre_hook(partial(put, path)).remove)
        for index, batch in enumerate(batches(loader, numbers[-1] + 1)):
            if index not in numbers:
                continue
            now[0] = index
            places.begin_step()
            with users_code(f"the loss of batch {index} in eval mode"):
                found.append(case.loss_of(case.model, batch, evaluation=True))
    return found


def _pool(calls: Sequence[Moments]) -> tuple[Tensor, Tensor]:
    """Return mean and variance of all values of several calls."""
    total = sum(call.count for call in calls)
    mean = torch.stack([call.mean * (call.count / total) for call in calls]).sum(0)
    parts = [(call.variance + (call.mean - mean).square()) * (call.count / total) for call in calls]
    return mean, torch.stack(parts).sum(0)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
