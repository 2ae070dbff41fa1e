"""Small training set-ups with a second model in them: a teacher, a target, an average of the weights."""

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn

from normscope.evidence import examples
from normscope.evidence.case import Case

Losses = Callable[[Any, Any, Any], Iterable[Tensor]]
Follow = Callable[[Any, Any], Any]


def with_companion(
    case: Case, losses: Losses | None = None, *, follow: Follow | None = None, companion: nn.Module | None = None
) -> Case:
    """Give a set-up a step that reaches a second model, by the name ``step.companion``.

    Args:
        case: The set-up.
        losses: ``losses(model, companion, batch)`` yields the losses of a step; left out, the companion is not called.
        follow: ``follow(companion, model)`` after each update.
        companion: The second model; left out, a copy of the model that requires no gradient.
    """
    if companion is None:
        companion = copy.deepcopy(case.model).requires_grad_(False)

    def each(model: Any, batch: Any) -> Iterable[Tensor]:
        return [examples.loss_fn(model, batch)] if losses is None else losses(model, companion, batch)

    plain = examples.stepped(case, each).step
    assert plain is not None
    case.step = partial(_step, plain, follow, companion=companion)  # what an argument holds is reached
    return case


def _step(plain: Any, follow: Follow | None, model: Any, batch: Any, *, companion: Any) -> None:
    plain(model, batch)
    if follow is not None:
        follow(companion, model)
