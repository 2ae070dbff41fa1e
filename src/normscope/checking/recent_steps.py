"""The last steps of a training that is under way, in the form in which rules are given evidence."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from normscope.evidence.evidence import NotShownError
from normscope.evidence.listening import Training


class RecentBatches:
    """The batches of the last steps, in order, as a loader.

    Args:
        batches: The batches.
        why_not: If given, why no pass over them may be made: iterating raises it.
    """

    def __init__(self, batches: Sequence[Any], why_not: str = "") -> None:
        self._batches, self._why_not = list(batches), why_not

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        if self._why_not:
            raise NotShownError(self._why_not)
        return iter(self._batches)


class ParameterGroups:
    """The parameter groups of all optimizers, to look at: nothing is updated, so no optimizer state is kept."""

    def __init__(self, optimizers: Sequence[Any]) -> None:
        self.param_groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.state: dict[Any, Any] = {}


def joined(steps: Sequence[Training], *, counted: bool = True) -> Training:
    """Return consecutive steps, each listened to by itself, as one training of that many steps.

    Args:
        steps: The steps, in order.
        counted: Whether updates were counted; else each step counts as one update.
    """
    whole = Training()
    forwards = 0
    for number, part in enumerate(steps):
        for call in part.calls:
            update = whole.updates + call.update if counted else number
            forward = call.forward and forwards + call.forward
            whole.calls.append(replace(call, step=number, update=update, order=len(whole.calls), forward=forward))
        forwards += max((call.forward for call in part.calls), default=0)
        for graph, (updates, begun) in part.sums.items():
            whole.sums[graph] = whole.updates + updates, whole.sums_begun + begun
        whole.sums_begun += part.sums_begun
        whole.updates += part.updates if counted else 1
        whole.call_logs += part.call_logs
        whole.losses += part.losses
        whole.steps += 1
        whole.inputs = part.inputs or whole.inputs
        if whole.broken is None and part.broken is not None:
            whole.broken = (part.broken[0], number)
        if whole.batch_broken is None and part.batch_broken is not None:
            whole.batch_broken = number
    return whole
