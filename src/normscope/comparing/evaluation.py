"""How an arm does on data that it is not trained on, and what evaluation loses: measured without a trace."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from normscope.evidence import Case
from normscope.evidence.gap import measure_gap
from normscope.evidence.sandbox import batches, sandbox
from normscope.modules.batches import tensors
from normscope.modules.call import set_mode
from normscope.records import Record
from normscope.usercode import users_code

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)


def evaluate(case: Case, count: int, cell: str, step: int) -> Iterator[Record]:
    """Yield the loss in eval mode on evaluation batches, and the accuracy where batches have labels.

    Every second batch is kept for choosing among learning rates (``choice_loss``); the others are reported (``loss``,
    ``accuracy``). With a single batch both are of it. Without evaluation data nothing is yielded.

    Args:
        case: The set-up; left as it was.
        count: Batches, at most.
        cell: Names the records.
        step: How many steps were made.

    Raises:
        UsageError: The loader or the loss raises.
    """
    if case.eval_loader is None:
        return
    seen = _Outputs()
    losses, hits = [], []
    with sandbox(case):
        set_mode(case.model, False)
        handle = case.model.register_forward_hook(seen.note)
        for index, batch in enumerate(batches(case.eval_loader, max(count, 2), what="eval_loader")):
            with users_code(f"the loss of batch {index} of the eval_loader"):
                if not case.tried(evaluation=True):
                    case.loss_of(case.model, batch, evaluation=True)  # it may have to be taken twice
                seen.outputs.clear()
                losses.append(case.loss_of(case.model, batch, evaluation=True))
            hits.append(_accuracy(seen.outputs, batch))
        handle.remove()
    reported = range(0, len(losses), 2)
    chosen = range(1, len(losses), 2) if len(losses) > 1 else reported
    yield Record(cell, step, "evaluation", "", "loss", _mean(losses[i] for i in reported))
    yield Record(cell, step, "evaluation", "", "choice_loss", _mean(losses[i] for i in chosen))
    found = [hit for i in reported if (hit := hits[i]) is not None]
    if found:
        yield Record(cell, step, "evaluation", "", "accuracy", _mean(found))


def gap_records(case: Case, count: int, cell: str, step: int) -> Iterator[Record]:
    """Yield the loss of training, that of evaluation, and the shares of the gap between them, by cause.

    Args:
        case: The set-up; left as it was.
        count: Batches a loss.
        cell: Names the records.
        step: How many steps were made.

    Raises:
        UsageError: A loader or the loss raises.
    """
    gap = measure_gap(case, count)
    yield Record(cell, step, "gap", "", "train", gap.train)
    yield Record(cell, step, "gap", "", "eval", gap.eval)
    for share in gap.shares:
        yield Record(cell, step, "gap", "", share.cause, share.loss)


class _Outputs:
    """Keeps what a model returns."""

    def __init__(self) -> None:
        self.outputs: list[Any] = []

    def note(self, _module: Any, _args: Any, output: Any) -> None:
        """Keep an output."""
        self.outputs.append(output)


def _accuracy(outputs: list[Any], batch: Any) -> float | None:
    """Return the share of samples whose largest output is at the label; None where a batch has no such labels.

    Labels are the one tensor of integers (N, ...) in the batch beside outputs (N, C, ...) of one call of the model.
    """
    scores = [tensor for output in outputs for tensor in tensors(output)]
    if len(outputs) != 1 or len(scores) != 1 or scores[0].ndim < 2 or not scores[0].is_floating_point():
        return None
    shape = (scores[0].shape[0], *scores[0].shape[2:])
    labels = [tensor for tensor in tensors(batch) if tensor.dtype in _INTEGERS and tensor.shape == shape]
    if len(labels) != 1 or scores[0].shape[1] < 2:
        return None
    label: Tensor = labels[0].to(scores[0].device)
    if int(label.min()) < 0 or int(label.max()) >= scores[0].shape[1]:
        return None
    return float((scores[0].argmax(1) == label).double().mean())


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
