"""Do as the user's loop does, and leave nothing of it behind."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator

from normscope._errors import UsageError
from normscope.evidence.case import Case
from normscope.modules.batches import tensors
from normscope.modules.reach import left_words
from normscope.modules.reaching import undone
from normscope.modules.wrapped import eagerly, is_compiled
from normscope.usercode import users_code


class NoBatchError(UsageError):
    """A loader gives no batches, or not to every pass.

    Attributes:
        loader: What messages call it. Without batches of ``"loader"`` nothing of a set-up can be judged.
    """

    loader = "loader"


class TraceWarning(UserWarning):
    """Something that the user's functions change could not be put back."""


@contextmanager
def sandbox(case: Case) -> Iterator[None]:
    """Undo at the end, however it ends, whatever happens to models, optimizer, loaders' streams and random streams.

    So is what ``loss_fn``, ``step`` and ``eval_loss_fn`` reach beside them, and every module that runs. What could not
    be put back is named in one ``TraceWarning``, when the outermost sandbox of a case ends.

    Raises:
        UsageError: A parameter lies on the meta device, and so has no value, or is lazy, and so has no shape; or the
            functions take from an iterator.
    """
    case.reach.set_functions(case.functions())
    told = len(case.reach.left)
    outermost, case.reach.open = not case.reach.open, True
    try:
        with _undone(case):
            yield
    finally:
        if outermost:
            case.reach.open = False
            if left := case.reach.left[told:]:
                warnings.warn(f"the check has changed what it could not put back: {left_words(left)}", TraceWarning, 3)


@contextmanager
def _undone(case: Case) -> Iterator[None]:
    models = [model for model in (case.model, case.averaged) if model is not None]
    for model in models:
        named = (*model.named_parameters(), *model.named_buffers())
        away = next((name for name, tensor in named if tensor.is_meta), None)
        if away is not None:
            raise UsageError(f"{away} lies on the meta device and has no value: materialise the model first")
    optimizers = [] if case.optimizer is None else [case.optimizer]
    with (
        torch.set_grad_enabled(torch.is_grad_enabled()),  # both modes are put back at the end, too
        torch.autograd.set_detect_anomaly(torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        undone(case.reach, *models, optimizers=optimizers, generators=streams_of_loaders(case)),
        # Hooks would have compiled modules compiled anew, and not be called by those that are not.
        eagerly(any(map(is_compiled, models))),
    ):
        yield


def streams_of_loaders(case: Case) -> Iterator[Generator]:
    """Yield the random streams that the loaders of a set-up draw from, besides torch's own."""
    for loader in (case.loader, case.eval_loader):
        sampler = getattr(loader, "sampler", None)
        batch_sampler = getattr(loader, "batch_sampler", None)
        for holder in (loader, sampler, batch_sampler, getattr(batch_sampler, "sampler", None)):
            stream = getattr(holder, "generator", None)
            if isinstance(stream, Generator):
                yield stream


def batches(loader: Any, most: int, *, what: str = "loader") -> Iterator[Any]:
    """Yield the first batches of a loader.

    Raises:
        NoBatchError: It gives none.
        UsageError: It gives an empty one, or raises.
    """
    count = 0
    with users_code(f"iterating the {what}"):
        found = iter(loader)
    while count < most:
        with users_code(f"getting batch {count} of the {what}"):
            batch = next(found, _END)
        if batch is _END:
            break
        sizes = [tensor.numel() for tensor in tensors(batch)]
        if sizes and not any(sizes):
            raise UsageError(f"batch {count} of the {what} is empty: all of its tensors have no elements")
        yield batch
        count += 1
    if not count:
        error = NoBatchError(
            f"the {what} gives no batch, or gave all to an earlier pass: it must begin anew each time it is iterated, "
            "as a list or a DataLoader does"
        )
        error.loader = what
        raise error


_END = object()
