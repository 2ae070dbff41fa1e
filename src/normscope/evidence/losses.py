"""Losses of the first batches of a loader, in whatever modes the model is."""

from collections.abc import Iterable
from typing import Any

from torch.nn import Module

from normscope._errors import UsageError
from normscope.evidence.case import Case
from normscope.evidence.sandbox import batches
from normscope.usercode import users_code

_REFUSED = "more than 1 value per channel"  # torch's words where a batch norm in training has nothing to average


def mean_loss(
    case: Case, loader: Iterable[Any], count: int, *, model: Module | None = None, evaluation: bool = False
) -> float:
    """Return the mean of ``losses``; arguments as there."""
    found = losses(case, loader, count, model=model, evaluation=evaluation)
    return sum(found) / len(found)


def losses(
    case: Case,
    loader: Iterable[Any],
    count: int,
    *,
    model: Module | None = None,
    evaluation: bool = False,
    what: str = "",
) -> list[float]:
    """Return the losses of the first batches.

    A batch that torch refuses, as it has one value a channel, is left out where others before it were not refused.

    Args:
        case: The set-up.
        loader: Gives the batches.
        count: Number of batches.
        model: The model; left out, that of the case.
        evaluation: Whether it is in eval mode.
        what: What messages call the loader; left out, by its place in the case.

    Raises:
        UsageError: The loader or the loss raises.
    """
    found: list[float] = []
    what = what or ("eval_loader" if loader is case.eval_loader else "loader")
    for index, batch in enumerate(batches(loader, count, what=what)):
        try:
            with users_code(f"the loss of batch {index} of the {what}"):
                found.append(case.loss_of(case.model if model is None else model, batch, evaluation=evaluation))
        except UsageError as error:
            if found and is_refused(error):
                continue
            if not evaluation or case.eval_loss_fn is not None:
                raise
            raise in_eval_mode(error) from error.__cause__
    return found


def in_eval_mode(error: UsageError) -> UsageError:
    """Return an error of a loss with the mode in its words, and what may help."""
    return UsageError(
        f"{error}, with the model in eval mode: if it returns something else there, give Case(eval_loss_fn=...)"
    )


def is_refused(error: Exception) -> bool:
    """Whether a batch norm in training refused a batch for its one value a channel, by the exception it raised."""
    return _REFUSED in str(error)
