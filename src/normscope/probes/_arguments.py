"""What a recorder is given: checked, and the place of its records opened."""

import os
from collections.abc import Iterator
from operator import index
from os import PathLike
from pathlib import Path
from typing import Any

from torch.nn import Module
from torch.nn.modules.loss import _Loss
from torch.optim import Optimizer

from normscope._errors import UsageError
from normscope.modules.wrapped import rank_of_many, refuse_fixed, unwrap_optimizer, world_size
from normscope.probes._sinks import RecordSink
from normscope.records import Store
from normscope.records.cell_names import claim_cell, last_step, require_cell_name, take_up_cell


def optimizers_of(given: Any) -> list[Optimizer]:
    """Return one optimizer, several or none as a list.

    Raises:
        UsageError: One of them is no optimizer.
    """
    optimizers: list[Any] = [given] if hasattr(given, "param_groups") else listed(given or ())
    if wrong := [optimizer for optimizer in optimizers if not hasattr(optimizer, "param_groups")]:
        hint = (
            ": a loss function is given as loss_fn=" if callable(wrong[0]) and not isinstance(wrong[0], Module) else ""
        )
        raise UsageError(
            f"optimizer must be a torch optimizer or a sequence of them, not {type(wrong[0]).__name__}{hint}"
        )
    return [unwrap_optimizer(optimizer) for optimizer in optimizers]


def listed(given: Any) -> list[Any]:
    """Return several things as a list; a thing alone counts as a list of itself."""
    if isinstance(given, (list, tuple, set, frozenset, Iterator)):
        return list(given)
    return [given]


def checked_sinks(given: Any) -> list[Any]:
    """Return the sinks.

    Raises:
        UsageError: One of them cannot take records.
    """
    sinks = listed(given)
    for sink in sinks:
        if isinstance(sink, type):
            raise UsageError(f"sinks has the class {sink.__name__}: give an object of it, {sink.__name__}(...)")
        if missing := [name for name in ("append", "finding", "close") if not callable(getattr(sink, name, None))]:
            raise UsageError(
                f"sinks has a {type(sink).__name__}, which has no {missing[0]}(): a sink has append(records), "
                "finding(finding) and close(report)"
            )
    return sinks


def _checked_place(record_to: Any) -> None:
    if record_to is None:
        return
    if isinstance(record_to, (str, PathLike)):
        text = os.fspath(record_to)
        if not text or "\0" in str(text):
            raise UsageError("record_to is no path: give the folder for the records, such as runs/mine")
        if "://" in str(text):
            raise UsageError(f"record_to={text!r} is an address: records go to a folder of this machine")
        return
    if isinstance(record_to, type) or not all(
        callable(getattr(record_to, name, None)) for name in ("append", "flush", "frame")
    ):
        raise UsageError(
            f"record_to must be a folder, or an object with append(records), flush() and frame(), not "
            f"{record_to.__name__ if isinstance(record_to, type) else type(record_to).__name__}"
        )


def check_arguments(
    model: Any, loss_fn: Any, every: Any, start: Any, scaler: Any, optimizer: Any, record_to: Any
) -> None:
    """Refuse what no recorder can be made of.

    Raises:
        UsageError: As of ``Recorder``.
    """
    if isinstance(every, bool) or not hasattr(type(every), "__index__") or index(every) < 1:
        raise UsageError(f"every={every!r} must be a whole number of steps, 1 or more")
    if not isinstance(model, Module):
        raise UsageError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    refuse_fixed(model)
    if hasattr(loss_fn, "param_groups"):
        raise UsageError(
            f"loss_fn is an optimizer ({type(loss_fn).__name__}): write ns.watch(model, optimizer, loss_fn), or "
            "ns.Scope(model, loss_fn, optimizer)"
        )
    if loss_fn is not None and not callable(loss_fn):
        raise UsageError(f"loss_fn must be a function loss_fn(model, batch) -> scalar, not {type(loss_fn).__name__}")
    if isinstance(loss_fn, _Loss):
        raise UsageError(
            f"loss_fn is {type(loss_fn).__name__}, which takes outputs and targets: give a function of the model and "
            "the batch, such as lambda model, batch: loss(model(batch[0]), batch[1])"
        )
    if scaler is not None and not (hasattr(scaler, "get_scale") and hasattr(scaler, "is_enabled")):
        raise UsageError(f"scaler must be a torch.amp.GradScaler, not {type(scaler).__name__}")
    if scaler is not None and optimizer is None:
        raise UsageError("with a gradient scaler the scope needs the optimizer too")
    _checked_place(record_to)
    if start != "continue" and (isinstance(start, bool) or not hasattr(type(start), "__index__") or index(start) < 0):
        raise UsageError(f'start={start!r} must be the number of a step, 0 or more, or "continue"')


def open_cell(
    record_to: "str | PathLike[str] | RecordSink | None", name: str, start: int | str, facts: dict[str, Any]
) -> tuple[RecordSink | None, str, int]:
    """Return where records go, the name of the cell, and the number of the first step."""
    require_cell_name(name)
    rank = rank_of_many()
    if record_to is None or not isinstance(record_to, (str, PathLike)):
        if start == "continue":
            raise UsageError('start="continue" needs record_to, the folder of the run that is continued')
        return record_to, name if rank is None else f"{name}.rank{rank}", int(start)
    store = Store.create(Path(record_to).expanduser(), {"kind": "scope"})
    if start == "continue":
        cell = take_up_cell(store.path, name, rank)
        if cell is not None:
            last = last_step(store.path, cell)
            return store, cell, 0 if last is None else last + 1
        start = 0
    return store, claim_cell(store.path, name, rank, ranks=world_size(), facts=facts), int(start)
